"""What the operator says: typed schema, loading, and what ships by default."""
