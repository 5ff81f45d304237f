"""/api: Ollama's dialect, over the models of the config."""
