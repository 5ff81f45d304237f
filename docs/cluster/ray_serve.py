"""Two replicas of llama-cpp-python's own server behind one address, by Ray Serve.

    pip install "ray[serve]" "llama-cpp-python[server]"
    MODEL=/models/qwen3-8b-q4_k_m.gguf NAME=qwen3 serve run ray_serve:replicas

They answer at http://127.0.0.1:8000/v1; which of them does, Ray decides.
"""

import os

from fastapi import FastAPI
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
from ray import serve


def server() -> FastAPI:
    """Made in each replica. Unless told otherwise it cuts an answer short for the next request."""
    model = ModelSettings(model=os.environ["MODEL"], model_alias=os.environ["NAME"], n_ctx=8192)
    return create_app(server_settings=ServerSettings(interrupt_requests=False), model_settings=[model])


@serve.deployment(num_replicas=2, max_ongoing_requests=16, health_check_period_s=5)
@serve.ingress(server)
class Replica:
    pass


replicas = Replica.bind()
