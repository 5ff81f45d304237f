"""The routes; each of the four dialects is a folder that knows no other."""
