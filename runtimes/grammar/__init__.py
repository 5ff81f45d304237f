"""What an answer may look like, written for the engines' grammar libraries."""
