"""A model's source: local folder | hub id | .gguf file | builtin:NAME -> where it lies and what it is."""

import hashlib
import importlib.resources
import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

from optimize.gguf.header import read_header
from optimize.recipe import CannotBuild, Source

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?$")
WHOLE_FILE_BYTES = 64 << 20  # a file up to here is hashed whole; of a larger one its ends, size and time
EDGE_BYTES = 1 << 20
WEIGHTS = "*.safetensors"
# A folder with this file in it holds an artifact that is ready for the engines of that format.
READY = {"openvino_model.xml": "openvino", "genai_config.json": "onnx"}


def is_hub_id(source: str) -> bool:
    """Whether `source` must be fetched: nothing on this disk goes by that name."""
    return bool(HUB_ID.match(source)) and not Path(source).exists() and not source.startswith(("./", "../"))


def resolve(source: str) -> Source:
    """What `source` is, for all but hub ids. Raises CannotBuild in one sentence."""
    if source == "builtin:echo":
        return Source(source, "echo", "", "", 0, 0, 0, "echo")
    if source.startswith("builtin:"):
        return builtin(source)
    path = Path(source).expanduser()
    if path.is_dir():
        ready = next((kind for name, kind in READY.items() if (path / name).exists()), None)
        return ready_folder(source, path, ready) if ready else checkpoint(source, path)
    if path.is_file() and path.suffix == ".gguf":
        return gguf_file(source, path)
    if path.is_file():
        raise CannotBuild(f"source '{source}' is a file, but not .gguf; a source is a folder, a .gguf file or a hub id")
    raise CannotBuild(
        f"source '{source}' does not exist; a source is a folder with config.json and {WEIGHTS}, a .gguf file, "
        "a hub id such as Qwen/Qwen3-0.6B, or builtin:pocket"
    )


def builtin(source: str) -> Source:
    name = source.removeprefix("builtin:")
    folder = Path(str(importlib.resources.files("config"))) / name
    if not (folder / "config.json").exists():
        raise CannotBuild(f"unknown source '{source}'; have: builtin:echo, builtin:pocket")
    return checkpoint(source, folder)


def gguf_file(source: str, path: Path) -> Source:
    header = read_header(path)
    return Source(
        source,
        "gguf",
        str(path.resolve()),
        header.architecture,
        header.context_length,
        header.parameters,
        path.stat().st_size,
        fingerprint([path]),
        header.precision,
    )


def ready_folder(source: str, folder: Path, kind: str) -> Source:
    config = read_json(folder / "config.json", source) if (folder / "config.json").exists() else {}
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return Source(
        source,
        kind,
        str(folder.resolve()),
        (config.get("architectures") or [""])[0],
        int(config.get("max_position_embeddings") or 0),
        0,
        sum(file.stat().st_size for file in files),
        fingerprint(files),
    )


def checkpoint(source: str, folder: Path) -> Source:
    config = read_json(folder / "config.json", source)
    if isinstance(config.get("quantization"), dict):  # mlx_lm's mark; its 16-bit folders are checkpoints
        return ready_folder(source, folder, "mlx")
    weights = sorted(folder.glob(WEIGHTS))
    if not weights:
        pickles = list(folder.glob("*.bin")) + list(folder.glob("*.pt"))
        ready = sorted(folder.glob("*.gguf"))
        if ready:
            raise CannotBuild(f"source '{source}' holds no {WEIGHTS}, but .gguf; name the file: {ready[0]}")
        remedy = (
            "only safetensors are read, never a pickle; convert it first" if pickles else "is the download complete?"
        )
        raise CannotBuild(f"source '{source}' has no {WEIGHTS}: {remedy}")
    architectures = config.get("architectures") or [""]
    text = config.get("text_config") or config
    small = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".jinja", ".model") and p.is_file()]
    return Source(
        source,
        "checkpoint",
        str(folder.resolve()),
        architectures[0],
        int(text.get("max_position_embeddings") or 0),
        sum(count_parameters(file) for file in weights),
        sum(file.stat().st_size for file in weights),
        fingerprint(small + weights),
    )


def read_json(file: Path, source: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CannotBuild(
            f"source '{source}' has no {file.name}; a folder must be a Hugging Face checkpoint"
        ) from error
    except (ValueError, OSError) as error:
        raise CannotBuild(f"source '{source}': {file.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CannotBuild(f"source '{source}': {file.name} is not a JSON object")
    return value


def count_parameters(file: Path) -> int:
    """Of a safetensors file, from its header. A broken one counts 0 here and is refused when it is converted."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > file.stat().st_size:
                return 0
            header = json.loads(stream.read(size))
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (OSError, ValueError, struct.error, KeyError, TypeError):
        return 0


def fingerprint(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name}\0{stat.st_size}\0".encode())
        with file.open("rb") as stream:
            if stat.st_size <= WHOLE_FILE_BYTES:
                digest.update(stream.read())
            else:
                digest.update(str(stat.st_mtime_ns).encode())
                digest.update(stream.read(EDGE_BYTES))
                stream.seek(-EDGE_BYTES, os.SEEK_END)
                digest.update(stream.read(EDGE_BYTES))
    return digest.hexdigest()
