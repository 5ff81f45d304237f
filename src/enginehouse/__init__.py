"""One OpenAI-compatible endpoint in front of every local LLM engine. The folders are links to those of the checkout."""
