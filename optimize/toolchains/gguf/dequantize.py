"""A .gguf file back into a checkpoint of 16-bit weights, for the other toolchains: the converse of `convert`."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from enginehouse.optimize import intermediate
from enginehouse.optimize.artifact import CannotBuild, Report, Source, bytes_in_16_bits
from enginehouse.optimize.sources.checks import all_finite
from enginehouse.optimize.sources.floats import narrow
from enginehouse.optimize.sources.gguf_checkpoint import FREQUENCIES, Stored, folder_of, read_config, read_parts
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.sources.safetensors import header
from enginehouse.optimize.toolchains.gguf.config import decode_config
from enginehouse.optimize.toolchains.gguf.families_read_back import family_of
from enginehouse.optimize.toolchains.gguf.plan import Target, check_heads, targets
from enginehouse.optimize.toolchains.gguf.rope import Scaling, llama3_divisors
from enginehouse.optimize.toolchains.gguf.tokenizer import write_tokenizer

Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 1 << 22  # weights dequantized together
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@contextmanager
def checkpoint_of(source: Source, cache: Path, report: Report) -> Iterator[Source]:
    """The file as a checkpoint in the cache, made by who asks first; nobody prunes it within. Raises CannotBuild."""

    def make(folder: Path) -> None:
        intermediate.check_free(folder, bytes_in_16_bits(source))
        write(source, folder, report)

    with intermediate.kept(folder_of(source, cache), make, whole) as made:
        yield resolve(source.id, at=str(made))


def whole(folder: Path) -> bool:
    try:
        return folder.exists() and resolve("", at=str(folder)).kind == "checkpoint"
    except CannotBuild:
        return False


def write(source: Source, folder: Path, report: Report) -> None:
    """Into an empty folder."""
    report("convert", 0.0)
    path, raw = Path(source.path), read_config(source)
    stored = read_parts(path)[1]
    raw["tie_word_embeddings"] = tied = "output.weight" not in stored
    if "rope_theta" in raw["rope_parameters"] and (factors := stored.pop(FREQUENCIES, None)):
        raw["rope_parameters"] |= llama3(factors, raw)
    family = family_of(raw)
    config = decode_config(raw, family.defaults)
    check_heads(config, family)
    expected = targets(config, family, tied)
    check_tensors(path.name, stored, expected)
    write_tokenizer(path, folder, raw["vocab_size"])
    (folder / "config.json").write_text(json.dumps(raw, indent=1))
    write_weights(folder / "model.safetensors", stored, expected, report)


def llama3(stored: Stored, raw: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's positions, of which a file holds but the divisors: their parameters, if they are the usual ones."""
    divisors = dequantize(stored, 0, 1).reshape(-1)
    found: dict[str, Any] = {"rope_type": "llama3", "factor": round(float(divisors.max()), 3), **LLAMA3}
    if np.all(divisors == 1):
        return {}
    rope = raw["rope_parameters"]
    usual = llama3_divisors(Scaling(**found), rope["rope_theta"], raw["head_dim"])
    if rope["rope_type"] != "default" or len(usual) != len(divisors) or not np.allclose(usual, divisors, rtol=1e-3):
        raise CannotBuild(f"the positions in '{stored.file.name}' are not those of Llama 3, and not carried over")
    return found


def check_tensors(name: str, stored: dict[str, Stored], expected: dict[str, Target]) -> None:
    if missing := next((target for target in expected.values() if target.name not in stored), None):
        raise CannotBuild(f"'{name}' has no '{missing.name}', which its header promises; download it again")
    if foreign := sorted(stored.keys() - {target.name for target in expected.values()}):
        raise CannotBuild(f"'{name}' has a tensor '{foreign[0]}', which is not carried over to other engines")
    experts = Counter(target.name for target in expected.values() if target.expert is not None)
    for target in expected.values():
        shape = stored[target.name].shape
        promised = target.shape if target.expert is None else (experts[target.name], *target.shape)
        if without_ones(shape) != without_ones(promised):
            raise CannotBuild(f"'{target.name}' in '{name}' has shape {list(shape)}, its header says {list(promised)}")


def without_ones(shape: tuple[int, ...]) -> list[int]:
    """Some converters leave them out."""
    return [size for size in shape if size != 1]


def write_weights(file: Path, stored: dict[str, Stored], expected: dict[str, Target], report: Report) -> None:
    """A safetensors file, a block of a tensor in memory at a time."""
    sizes = {name: 2 * math.prod(target.shape) for name, target in expected.items()}
    whole, done = sum(sizes.values()), 0
    with file.open("wb") as output:
        output.write(header({name: ("BF16", expected[name].shape, size) for name, size in sizes.items()}))
        for name, target in expected.items():
            for block in blocks(stored[target.name], target):
                output.write(block)
            done += sizes[name]
            report("convert", done / whole)


def blocks(tensor: Stored, target: Target) -> Iterator[memoryview]:
    """BF16, as the checkpoint has it."""
    rows = target.shape[0] if len(target.shape) > 1 else 1
    first = rows * (target.expert or 0)
    together = rows // target.rotate_heads if target.rotate_heads else 1
    step = max(together, BLOCK * rows // math.prod(target.shape) // together * together)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        wide = dequantize(tensor, first + start, count)
        if target.rotate_heads:
            wide = halve_rows(wide, count // together)
        narrowed = narrow(wide - np.float32(1) if target.add_one else wide, "BF16")
        if not all_finite(narrowed, "BF16"):
            raise CannotBuild(f"'{tensor.name}' in '{tensor.file.name}' has NaN or infinite weights; download it again")
        yield np.ascontiguousarray(narrowed).data.cast("B")


def dequantize(tensor: Stored, start: int, count: int) -> Array:
    """Rows of a tensor in 32 bits."""
    width = tensor.bytes // math.prod(tensor.shape[:-1])
    try:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        raw = np.memmap(tensor.file, np.uint8, "r", tensor.offset + start * width, (count, width))
        return np.ascontiguousarray(gguf.quants.dequantize(raw, kind), np.float32)
    except (KeyError, NotImplementedError) as error:
        raise CannotBuild(f"weights of type '{tensor.kind}', as '{tensor.name}' has them, are not read here") from error


def halve_rows(array: Array, heads: int) -> Array:
    """Rows of each head from neighbouring pairs to (first half, second half)."""
    pairs = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
