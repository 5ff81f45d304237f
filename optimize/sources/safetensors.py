"""Reads the weights of a Hugging Face folder: the headers of its safetensors, then one tensor at a time."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.files import read

if TYPE_CHECKING:
    import numpy

INDEX = "model.safetensors.index.json"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
SAVE_AGAIN = "save it again with transformers: AutoModelForCausalLM.from_pretrained(..).save_pretrained(..)"


class StoredTensor(msgspec.Struct, frozen=True):
    """Where a tensor's bytes lie: one entry of a safetensors header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    bytes: int


class HeaderEntry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """What a file of these begins with: dtype, shape and bytes of each, which follow in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        start, end = end, end + size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    encoded = msgspec.json.encode(entries)
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def list_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder by name, from the headers alone; raises CannotBuild on a damaged file."""
    tensors: dict[str, StoredTensor] = {}
    for file in shard_files(folder):
        tensors.update(read_header(file))
    return tensors


def shard_files(folder: Path) -> list[Path]:
    index = read(folder / INDEX, Index)
    if index is None:
        single = folder / "model.safetensors"
        if single.exists():
            return [single]
        if any(folder.glob("pytorch_model*.bin")):
            raise CannotBuild(
                f"'{folder.name}' has only pickled weights (pytorch_model.bin), only safetensors are read; {SAVE_AGAIN}"
            )
        raise CannotBuild(f"'{folder}' has no 'model.safetensors'; {SAVE_AGAIN}")
    files = [folder / name for name in sorted(set(index.weight_map.values()))]
    for file in files:
        if file.parent != folder or not file.exists():
            raise CannotBuild(f"shard '{file.name}' named in '{INDEX}' is missing; download the model again")
    return files


def read_header(file: Path) -> dict[str, StoredTensor]:
    damaged = f"'{file.name}' is damaged or truncated"
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + header_bytes > size:
            raise CannotBuild(f"{damaged}: its header goes beyond its {size} bytes; download it again")
        header = stream.read(header_bytes)
    try:
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        decoded = {name: msgspec.json.decode(entry, type=HeaderEntry) for name, entry in entries.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CannotBuild(f"{damaged}: its header does not decode ({error}); download it again") from error
    start = 8 + header_bytes
    tensors = {}
    for name, entry in decoded.items():
        first, last = entry.data_offsets
        if not 0 <= first <= last <= size - start:
            raise CannotBuild(f"{damaged}: tensor '{name}' lies beyond its {size} bytes; download it again")
        item_bytes = ITEM_BYTES.get(entry.dtype)
        if item_bytes and math.prod(entry.shape) * item_bytes != last - first:
            raise CannotBuild(
                f"{damaged}: tensor '{name}' has not the bytes of its shape {list(entry.shape)}; download it again"
            )
        tensors[name] = StoredTensor(file, entry.dtype, entry.shape, start + first, last - first)
    return tensors


def read_tensor(tensor: StoredTensor) -> "numpy.ndarray[Any, Any]":
    """The tensor as mapped memory; BF16 as raw uint16, for numpy has no such type."""
    import numpy

    kind = {"F32": numpy.float32, "F16": numpy.float16, "BF16": numpy.uint16}[tensor.dtype]
    return numpy.memmap(tensor.file, kind, "r", tensor.offset, tensor.shape)
