"""One engine in a process of its own: the pool takes `client.Worker`, its handle on it, and of the other files only what
needs no engine."""
