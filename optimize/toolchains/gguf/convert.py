"""Our own converter: writes a checkpoint as a GGUF file of 16- or 32-bit weights, one tensor in memory at a time."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.sources.checks import all_finite
from enginehouse.optimize.sources.floats import narrow, widen
from enginehouse.optimize.sources.safetensors import ITEM_BYTES, StoredTensor, read_tensor
from enginehouse.optimize.toolchains.gguf.conversion import Conversion
from enginehouse.optimize.toolchains.gguf.plan import Target

Array = np.ndarray[Any, np.dtype[Any]]

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}
NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
BLOCK = 2**20  # weights


def convert(conversion: Conversion, output: Path, precision: str, report: Report) -> None:
    """Writes `output` in "F32", "F16" or "BF16"; one-dimensional tensors are F32 always, as llama.cpp wants them."""
    decided = conversion.plan
    if decided.left_out:
        logging.getLogger(__name__).warning(
            "left out %d vision tensors: gguf holds the text model", len(decided.left_out)
        )
    writer = gguf.GGUFWriter(output, decided.architecture)
    try:
        write_keys(writer, conversion, precision)
        for target in decided.targets.values():
            kind = precision_of(target, precision)
            size = math.prod(target.shape) * ITEM_BYTES[kind]
            writer.add_tensor_info(
                target.name, target.shape, np.dtype(np.float32), size, gguf.GGMLQuantizationType[kind]
            )
        for name, factors in decided.factors.items():
            writer.add_tensor_info(name, [len(factors)], np.dtype(np.float32), 4 * len(factors))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        write_tensors(writer, conversion, precision, report)
    finally:
        writer.close()


def write_keys(writer: gguf.GGUFWriter, conversion: Conversion, precision: str) -> None:
    # no general.name: a "phi3" in it changes how llama.cpp cuts text, and can end the process
    writer.add_type("model")
    writer.add_file_type(FILE_TYPES[precision])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in conversion.keys.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)


def write_tensors(writer: gguf.GGUFWriter, conversion: Conversion, precision: str, report: Report) -> None:
    stored, targets = conversion.stored, conversion.plan.targets
    total, done = sum(stored[name].bytes for name in targets), 0
    for name, target in targets.items():
        writer.write_tensor_data(values(name, stored[name], target, precision_of(target, precision)))
        done += stored[name].bytes
        report("convert", done / total)
    for factors in conversion.plan.factors.values():
        writer.write_tensor_data(np.array(factors, np.float32))


def precision_of(target: Target, precision: str) -> str:
    return "F32" if len(target.shape) == 1 else precision


def values(name: str, tensor: StoredTensor, target: Target, precision: str) -> Array:
    stored: Array = read_tensor(tensor)
    array = pair_rows(stored, target.rotate_heads) if target.rotate_heads else stored
    if target.add_one or tensor.dtype != precision:
        array = changed(array, tensor.dtype, precision, target.add_one)
    if not all_finite(array, precision):
        if all_finite(stored, tensor.dtype):
            raise CannotBuild(f"tensor '{name}' has values beyond {precision}; use precision 'BF16' or 'F32'")
        raise CannotBuild(f"tensor '{name}' has NaN or infinite weights; the checkpoint is broken, download it again")
    return array


def pair_rows(array: Array, heads: int) -> Array:
    """Rows of each head from (first half, second half) to neighbouring pairs, which llama.cpp's llama graph rotates."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def changed(array: Array, dtype: str, precision: str, add_one: bool) -> Array:
    result = np.empty(array.shape, NUMPY_TYPES[precision])
    flat = array.reshape(-1)
    for block in blocks(flat):
        wide = widen(flat[block], dtype)
        result.reshape(-1)[block] = narrow(wide + np.float32(1) if add_one else wide, precision)
    return result


def blocks(flat: Array) -> Iterator[slice]:
    """Stretches small enough that what is made on the way to a result takes little memory."""
    return (slice(start, start + BLOCK) for start in range(0, flat.size, BLOCK))
