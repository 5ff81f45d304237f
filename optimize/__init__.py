"""From a model's source to an artifact an engine can load; imports of the house only config's data, and of itself only
downwards, in the order of the layers contract in pyproject.toml."""
