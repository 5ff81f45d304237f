"""Whether a checkpoint is sound: its tokenizer and its embedding belong together, and its weights are numbers."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.files import read
from enginehouse.optimize.sources.safetensors import StoredTensor, list_tensors, read_tensor

if TYPE_CHECKING:
    import numpy as np

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
BLOCK = 1 << 18  # weights looked at together
EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}  # all of these bits set: infinite, or no number


class TokenModel(msgspec.Struct, frozen=True):
    vocab: dict[str, int] | list[Any] = {}  # a list is Unigram's, in the order of ids


class Added(msgspec.Struct, frozen=True):
    id: int
    content: str


class TokenizerIds(msgspec.Struct, frozen=True):
    model: TokenModel
    added_tokens: list[Added] = []


class Settings(msgspec.Struct, frozen=True):
    chat_template: Any = ""
    eos_token: Any = ""


def check_tokenizer(folder: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises CannotBuild for a broken tokenizer, or one with tokens the embedding has no row for.

    An embedding with more rows is padded. An added token beyond it is let be as long as neither the chat template nor
    the end of an answer needs it: Gemma 3's text models ship one for images.
    """
    tokenizer = read(folder / "tokenizer.json", TokenizerIds)
    rows = next((tensor.shape[0] for name, tensor in tensors.items() if name.endswith(EMBEDDINGS)), None)
    if tokenizer is None or rows is None:
        return
    vocabulary = tokenizer.model.vocab
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    text = needed_text(folder)
    beyond = [token.id for token in tokenizer.added_tokens if token.id >= rows and token.content in text]
    highest = max((*ids, *beyond), default=0)
    if highest >= rows:
        raise CannotBuild(
            f"tokenizer.json has tokens up to {highest}, the embedding has {rows} rows; they are not of one model, "
            "or the embedding was not resized"
        )


def needed_text(folder: Path) -> str:
    settings = read(folder / "tokenizer_config.json", Settings) or Settings()
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else ""
    return f"{text}{settings.chat_template}{settings.eos_token}"


def check_weights(folder: Path) -> None:
    """Reads every weight once; raises CannotBuild naming the first tensor with NaN or infinite ones."""
    for name, tensor in list_tensors(folder).items():
        if not is_finite(tensor):
            raise CannotBuild(
                f"tensor '{name}' in '{tensor.file.name}' has NaN or infinite weights; the checkpoint is broken, "
                "download it again"
            )


def is_finite(tensor: StoredTensor) -> bool:
    if tensor.dtype not in EXPONENT or not math.prod(tensor.shape):
        return True
    return all_finite(read_tensor(tensor), tensor.dtype)


def all_finite(weights: "np.ndarray[Any, Any]", dtype: str) -> bool:
    """`dtype`: "F32", "F16" or "BF16", which numpy holds as 16-bit integers."""
    import numpy as np

    exponent, flat = EXPONENT[dtype], weights.reshape(-1)
    bits = flat.view(np.uint32) if dtype == "F32" else flat.view(np.uint16)
    blocks = (bits[start : start + BLOCK] for start in range(0, bits.size, BLOCK))
    return not any(((block & exponent) == exponent).any() for block in blocks)
