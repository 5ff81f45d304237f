"""What many tests share: one cache, and one server with the pocket model."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginehouse import config
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.engines import runtimes
from tests.serving import Served, serve

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # a worker's environment has it; here engines are loaded in this process
POCKET = Path(config.__file__).parent / "pocket"
BUILT = [name for name, runtime in runtimes().items() if runtime.format in toolchains()]  # a precision can be pinned
ENGINES = [name for name in BUILT if runtimes()[name].unavailable() is None]
EXACT = {"llamacpp": {"kv_precision": "f32", "flash_attention": "off"}}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its `cache` serves the whole session: an artifact is built once, as on a user's machine."""
    return tmp_path_factory.mktemp("house")


class Reference:
    """The pocket model in transformers, 32 bits: what every engine is compared with."""

    def __init__(self) -> None:
        import torch
        import transformers

        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(POCKET))
        self._model = transformers.AutoModelForCausalLM.from_pretrained(str(POCKET), dtype=torch.float32).eval()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The most likely continuation, without the token that ends it."""
        import torch

        out: list[int] = self._model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)[0][
            len(ids) :
        ].tolist()
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return out[:-1] if out[-1] in ends else out

    def logprobs(self, ids: list[int], prompt: int) -> list[list[float]]:
        """Of every token of the vocabulary, at each place after the prompt."""
        import torch

        with torch.inference_mode():
            logits = self._model(torch.tensor([ids])).logits[0, prompt - 1 : -1]
        rows: list[list[float]] = torch.log_softmax(logits, -1).tolist()
        return rows

    def embedding(self, ids: list[int], pooling: str) -> list[float]:
        import torch

        with torch.inference_mode():
            hidden = self._model.model(torch.tensor([ids])).last_hidden_state[0]
        vector = hidden.mean(0) if pooling == "mean" else hidden[-1 if pooling == "last" else 0]
        unit: list[float] = torch.nn.functional.normalize(vector, dim=0).tolist()
        return unit


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="session")
def house(folder: Path) -> Iterator[Served]:
    models = {
        "pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "aliases": ["gpt-4o-mini"]},
        "pocket-f32": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "f32", "options": EXACT},
        "pocket-int4": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int4"},
        "echo": {"source": "builtin:echo"},
        "agent": {"source": "builtin:echo", "context": 200_000},  # calls what it is told to
    }
    with serve(folder, models) as served:
        yield served


@pytest.fixture(scope="session")
def engines(folder: Path) -> Iterator[Served]:
    """The pocket model on every engine that is installed, by the engine's name."""
    models = {name: {"source": "builtin:pocket", "runtime": name, "precision": "int8"} for name in ENGINES}
    with serve(folder, models) as served:
        yield served


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 of random weights, for what needs a source and no sense."""
    from tests.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("tiny"))
