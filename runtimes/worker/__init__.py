"""One engine in a process of its own. The pool takes `client.Worker`, its handle on it, and of the other files what
needs no engine."""
