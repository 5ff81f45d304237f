"""Where a model comes from, and what its files say before anything is built; imports the store and what is below it,
never a toolchain."""
