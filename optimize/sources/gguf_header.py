"""Reads what a GGUF file says of itself, its tokenizer only on demand: cheap enough for the server process."""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild

# general.file_type -> the name of the precision
PRECISIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
# what a config may say -> the precision that is meant
ALIASES = {"int4": "Q4_K_M", "int8": "Q8_0", "16bit": "BF16", "bf16": "BF16", "f16": "F16", "f32": "F32"}
# tensor type -> its name, weights in a block, bytes of a block
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
TOKENIZER, GENERAL = "tokenizer.", "general."  # keys that begin with it
PLAIN = {"F32", "F16", "BF16"}

Scalar = int | float | bool | str


class Tensor(msgspec.Struct, frozen=True):
    name: str
    kind: str  # as in TENSOR_TYPES, or "type 99"
    shape: tuple[int, ...]  # as numpy has it: the dimension that lies closest together is the last
    offset: int  # in the file
    bytes: int

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


class Header(msgspec.Struct, frozen=True):
    architecture: str  # llama.cpp's name: "qwen3"
    name: str
    context_length: int  # tokens, 0 where the file does not say
    parameters: int
    precision: str  # "Q4_K_M"; where the file does not say, the type of most weights
    quantized: bool  # some weights have less than 16 bits
    parts: int  # files the model is split over


def read_header(path: Path) -> Header:
    """Raises CannotBuild where the file is no GGUF of version 2 or 3, or is shorter than its header promises."""
    keys, tensors = read(path)
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.kind] = weights.get(tensor.kind, 0) + tensor.weights
    architecture = str(keys.get("general.architecture", ""))
    return Header(
        architecture=architecture,
        name=str(keys.get("general.name", "")),
        context_length=int(keys.get(f"{architecture}.context_length", 0)),
        parameters=sum(weights.values()),
        precision=PRECISIONS.get(int(keys.get("general.file_type", -1)))
        or max(weights, key=weights.__getitem__, default=""),
        quantized=bool(weights.keys() - PLAIN),
        parts=int(keys.get("split.count", 1)),
    )


def read_tokenizer(path: Path) -> dict[str, Any]:
    """Its keys, arrays as lists. Raises CannotBuild as read_header does.

    gguf.GGUFReader takes 8 s for what takes 0.3 s here.
    """
    keys, _ = read(path, tokenizer=True)
    return {key: value for key, value in keys.items() if key.startswith(TOKENIZER)}


def read(path: Path, tokenizer: bool = False) -> tuple[dict[str, Any], list[Tensor]]:
    """Keys and tensors; general arrays are [], and the tokenizer's, which are long, unless they are asked for."""
    truncated = f"'{path.name}' is damaged or truncated at {path.stat().st_size} bytes; download it again"
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CannotBuild(f"'{path.name}' is not a gguf file; give one, or a Hugging Face folder")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                keys, tensors, end = read_all(data, path.name, tokenizer)
            except (struct.error, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
                raise CannotBuild(truncated) from error
            if end > len(data):
                raise CannotBuild(truncated)
    return keys, tensors


def read_all(data: mmap.mmap, name: str, tokenizer: bool) -> tuple[dict[str, Any], list[Tensor], int]:
    """What `read` gives, and where the last tensor ends."""
    (version,) = struct.unpack_from("<I", data, 4)
    if version not in (2, 3):
        raise CannotBuild(f"'{name}' is gguf version '{version}'; known: 2, 3")
    tensor_count, key_count = struct.unpack_from("<QQ", data, 8)
    position, keys = 24, dict[str, Any]()
    for _ in range(key_count):
        key, position = read_string(data, position)
        (kind,) = struct.unpack_from("<I", data, position)
        if kind != ARRAY:
            keys[key], position = read_value(data, position + 4, kind, name)
        else:
            keep = tokenizer if key.startswith(TOKENIZER) else not key.startswith(GENERAL)
            keys[key], position = read_array(data, position + 4, keep)
    tensors = []
    for _ in range(tensor_count):
        tensor_name, position = read_string(data, position)
        (dimensions,) = struct.unpack_from("<I", data, position)
        if dimensions > 4:
            raise IndexError(dimensions)
        *shape, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, position + 4)
        position += 4 + 8 * dimensions + 12
        type_name, block, block_bytes = TENSOR_TYPES.get(kind, (f"type {kind}", 1, 0))
        size = math.prod(shape) // block * block_bytes
        tensors.append(Tensor(tensor_name, type_name, tuple(reversed(shape)), offset, size))
    if not tensors:
        return keys, tensors, position
    alignment = int(keys.get("general.alignment", 0)) or 32
    start = -(-position // alignment) * alignment
    tensors = [msgspec.structs.replace(tensor, offset=start + tensor.offset) for tensor in tensors]
    return keys, tensors, max(tensor.offset + tensor.bytes for tensor in tensors)


def read_string(data: mmap.mmap, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, position)
    end = position + 8 + length
    if end > len(data):
        raise IndexError(end)
    return data[position + 8 : end].decode("utf-8", "replace"), end


def read_value(data: mmap.mmap, position: int, kind: int, name: str) -> tuple[Scalar, int]:
    if kind == STRING:
        return read_string(data, position)
    if kind not in SCALARS:
        raise CannotBuild(f"'{name}' has a key of unknown type '{kind}'; it is damaged or newer than gguf version 3")
    layout = struct.Struct("<" + SCALARS[kind])
    return layout.unpack_from(data, position)[0], position + layout.size


def read_array(data: mmap.mmap, position: int, keep: bool) -> tuple[list[Any], int]:
    """[] where it is only to be passed over."""
    kind, count = struct.unpack_from("<IQ", data, position)
    position += 12
    if kind != STRING:
        layout = struct.Struct(f"<{count}{SCALARS[kind]}")
        return list(layout.unpack_from(data, position)) if keep else [], position + layout.size
    length, strings = struct.Struct("<Q").unpack_from, []
    for _ in range(count):
        start = position + 8
        position = start + length(data, position)[0]
        if keep:
            strings.append(data[start:position].decode())
    return strings, position
