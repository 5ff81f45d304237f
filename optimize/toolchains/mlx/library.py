"""What every user of mlx_lm needs first: its import without what we never use of it, and a model from a folder."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.toolchains.mlx.families import translate

TRANSFORMERS = ("transformers", "transformers.tokenization_utils_base")


class Absent:
    """Stands for the classes of transformers that mlx_lm names while it is imported."""

    @classmethod
    def register(cls, *names: object, **classes: object) -> None: ...


def import_library() -> None:
    """Imports mlx_lm. Its own tokenizers are of transformers, which imports torch where there is one: two seconds and
    190 MB of every worker for what we have in `decoding.tokenizer`. So it finds stand-ins while it is imported."""
    if "transformers" in sys.modules or "mlx_lm" in sys.modules:
        importlib.import_module("mlx_lm.generate")
        return
    for name in TRANSFORMERS:
        module = types.ModuleType(name)
        module.__getattr__ = lambda _: Absent  # type: ignore[method-assign]
        sys.modules[name] = module
    try:
        importlib.import_module("mlx_lm.generate")
    finally:
        for name in TRANSFORMERS:
            del sys.modules[name]


def load_model(folder: Path) -> Any:
    """The model with its weights still on the disk: they are read when they are first used. Runs no code of the
    folder's own. Raises what mlx_lm raises, a ValueError for the most part."""
    from mlx_lm.utils import load_model as load

    config = read_json(folder / "config.json")
    model, _ = load(folder, lazy=True, model_config=translate(config))
    return model
