"""A checkpoint and all that is decided about it before a weight is read."""

from pathlib import Path

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.safetensors import StoredTensor, list_tensors
from enginehouse.optimize.toolchains.gguf.config import Value, decode_config
from enginehouse.optimize.toolchains.gguf.families import find_family
from enginehouse.optimize.toolchains.gguf.plan import Plan, plan
from enginehouse.optimize.toolchains.gguf.text import KEY, TextRules
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

    @property
    def rules(self) -> TextRules:
        return msgspec.json.decode(str(self.keys[KEY]), type=TextRules)


def decide(folder: Path) -> Conversion:
    """Reads configs and headers, no weights; raises CannotBuild for whatever the converter does not know."""
    raw = read_json(folder / "config.json")
    if not raw:
        raise CannotBuild(f"'{folder}' has no 'config.json'; give a Hugging Face model folder")
    family = find_family(raw)
    config = decode_config(raw, family.defaults)
    stored = list_tensors(folder)
    decided = plan(config, family, stored)
    return Conversion(folder, stored, decided, decided.metadata | tokenizer_keys(folder, config))
