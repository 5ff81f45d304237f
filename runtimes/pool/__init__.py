"""Which engine serves a model, what is loaded, and what becomes of a request."""
