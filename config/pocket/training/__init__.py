"""How the pocket model is made; not in the wheel."""
