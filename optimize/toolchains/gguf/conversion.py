"""A checkpoint and all that is decided about it before a weight is read."""

from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.sources.safetensors import StoredTensor, list_tensors
from enginehouse.optimize.toolchains.gguf.config import Value, decode_config
from enginehouse.optimize.toolchains.gguf.families import Family
from enginehouse.optimize.toolchains.gguf.plan import Plan, plan
from enginehouse.optimize.toolchains.gguf.vocabulary import tokenizer_keys


class Conversion(msgspec.Struct, frozen=True):
    folder: Path
    stored: dict[str, StoredTensor]
    plan: Plan
    keys: dict[str, Value]

    @property
    def lossless_precision(self) -> str:
        """The precision that loses nothing of the checkpoint's matrices."""
        kinds = {self.stored[name].dtype for name, target in self.plan.targets.items() if len(target.shape) > 1}
        return kinds.pop() if len(kinds) == 1 else "F32"


def decide(folder: Path, raw: dict[str, Any], family: Family) -> Conversion:
    """Reads configs and headers, no weights; raises CannotBuild for whatever the converter does not know. `raw`: its
    config.json."""
    config = decode_config(raw, family.defaults)
    stored = list_tensors(folder)
    decided = plan(config, family, stored)
    return Conversion(folder, stored, decided, decided.metadata | tokenizer_keys(folder, config))
