"""A runtime that runs elsewhere: servers of OpenAI's API. `upstream.py` is what the pool asks."""
