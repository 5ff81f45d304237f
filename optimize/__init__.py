"""From a model's source to an artifact an engine can load."""
