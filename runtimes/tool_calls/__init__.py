"""How models call tools: the forms, and what reads them."""
