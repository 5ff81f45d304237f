"""A checkpoint that was published with quantized weights, in 16 bits: made once, in the cache, for all engines."""

import math
from collections.abc import Iterator
from pathlib import Path

import msgspec

from enginehouse.optimize import intermediate
from enginehouse.optimize.artifact import CannotBuild, Report, Source
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.floats import FLOATS, narrow
from enginehouse.optimize.sources.quantizations import UNUSED, Weight, method_of, refusal, settings_of, weights
from enginehouse.optimize.sources.resolve import copy_beside_weights
from enginehouse.optimize.sources.safetensors import INDEX, StoredTensor, header, list_tensors

DEQUANTIZE_VERSION = "1"  # raise it with every change to the bytes of a dequantized checkpoint
ORIGIN = "dequantized.json"  # in the result: what it was made of
SHARD_BYTES = 4 << 30
COPY_BYTES = 16 << 20


class Output(msgspec.Struct, frozen=True):
    """A tensor to be written: one that is there, or a weight that is to be made."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    origin: StoredTensor | Weight


def is_quantized(source: Source) -> bool:
    """Whether its weights are to be brought to 16 bits, and can be."""
    if source.kind != "checkpoint":
        return False
    config = read_json(Path(source.path) / "config.json")
    return settings_of(config) is not None and refusal(config) is None


def folder_of(source: Source, cache: Path) -> Path:
    return intermediate.place(cache, "widened", DEQUANTIZE_VERSION, source.fingerprint)


def dequantize(source: Source, cache: Path, report: Report) -> str:
    """Writes the checkpoint into the cache, whole or not at all, once for all processes."""

    def make(folder: Path) -> None:
        outputs = plan(Path(source.path))
        intermediate.check_free(folder, sum(output.bytes for output in outputs))
        write(outputs, folder, report)
        copy_rest(source, folder)

    with intermediate.kept(folder_of(source, cache), make) as made:
        return str(made)


def plan(folder: Path) -> list[Output]:
    """What is to be written, from headers alone."""
    tensors, settings = list_tensors(folder), settings_of(read_json(folder / "config.json"))
    assert settings is not None
    made = weights(tensors, settings)
    parts = {part for weight in made.values() for part in weight.parts}
    plain = {name: tensor for name, tensor in tensors.items() if name not in parts and not name.endswith(UNUSED)}
    method = method_of(settings)
    for name, tensor in plain.items():
        if len(tensor.shape) > 1 and tensor.dtype not in FLOATS[:3]:
            raise CannotBuild(f"tensor '{name}' is stored as '{tensor.dtype}', which '{method}' does not explain")
    dtype = precision(plain)
    outputs = [Output(name, t.dtype, t.shape, t.bytes, t) for name, t in plain.items()]
    outputs += [Output(name, dtype, weight.shape, 2 * math.prod(weight.shape), weight) for name, weight in made.items()]
    return sorted(outputs, key=lambda output: output.name)


def precision(plain: dict[str, StoredTensor]) -> str:
    """Half floats where what was not quantized is stored so: the checkpoint is of one kind."""
    matrices = [tensor for tensor in plain.values() if len(tensor.shape) > 1]
    largest = max(matrices, key=lambda tensor: tensor.bytes, default=None)
    return "F16" if largest is not None and largest.dtype == "F16" else "BF16"


def write(outputs: list[Output], folder: Path, report: Report) -> None:
    whole, done = sum(output.bytes for output in outputs), 0
    shards, index = in_shards(outputs), {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as stream:
            stream.write(header({output.name: (output.dtype, output.shape, output.bytes) for output in shard}))
            for output in shard:
                index[output.name] = name
                for piece in pieces(output):
                    stream.write(piece)
                done += output.bytes
                report("convert", done / max(1, whole))
    (folder / INDEX).write_bytes(msgspec.json.encode({"metadata": {"total_size": whole}, "weight_map": index}))


def in_shards(outputs: list[Output]) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    for output in outputs:
        if shards[-1] and sum(each.bytes for each in shards[-1]) + output.bytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(output)
    return shards


def pieces(output: Output) -> Iterator[bytes | memoryview]:
    import numpy as np

    match output.origin:
        case Weight(shape=shape, values=values):
            for member in range(shape[0] if len(shape) > 2 else 1):
                found = np.ascontiguousarray(values(member), np.float32)
                if found.size * (shape[0] if len(shape) > 2 else 1) != math.prod(shape):
                    raise CannotBuild(f"what is stored for '{output.name}' does not give its shape {list(shape)}")
                yield narrow(found, output.dtype).data
        case StoredTensor(file=file, offset=offset, bytes=size):
            with file.open("rb") as stream:
                stream.seek(offset)
                while size > 0:
                    read = stream.read(min(size, COPY_BYTES))
                    size -= len(read)
                    yield read


def copy_rest(source: Source, folder: Path) -> None:
    origin = Path(source.path)
    copy_beside_weights(origin, folder)
    config = read_json(origin / "config.json")
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    (folder / ORIGIN).write_bytes(msgspec.json.encode({"source": source.fingerprint}))
