"""One engine in a process of its own, and the server's handle on it."""
