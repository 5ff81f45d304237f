"""How good an artifact is: the gate, what it compares with and on which texts; imported by build alone, imports
toolchains and sources."""
