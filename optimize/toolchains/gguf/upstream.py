"""llama.cpp's own converter, of the very version of the library: where it lies, what it knows, and a run of it. The
library's wheel brings it when it was compiled here; else it is taken out of the source distribution, once."""

import ast
import functools
import importlib.metadata
import importlib.util
import math
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.child_process import run_blocking
from enginehouse.optimize.locks import Locks
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.safetensors import ITEM_BYTES, list_tensors
from enginehouse.optimize.toolchains.gguf.upstream_process import Convert, Converted

LIBRARY = "llama-cpp-python"
KEPT = "~/.cache/enginehouse/converter"  # whatever cache_dir is: it goes with the library, not with models
PARTS = {"vendor/llama.cpp/conversion": "conversion", "vendor/llama.cpp/gguf-py/gguf": "gguf"}
REGISTRY = "TEXT_MODEL_MAP"  # in conversion/__init__.py: architecture -> module
NOT_DECODERS = {"bert", "t5", "wavtokenizer", "llada", "dream"}  # modules: what these make does not write text onwards
DOWNLOAD_SECONDS = 900.0
EXPERT = re.compile(r"(?<=\.experts)\.\d+(?=\.)")
RESIDENT_BYTES, BYTES_EACH = 600 << 20, 8


class Upstream(msgspec.Struct, frozen=True):
    """A checkpoint that llama.cpp's converter is to convert."""

    folder: Path
    lossless_precision: str  # what most of the checkpoint's matrices are stored in


def decide(folder: Path, raw: dict[str, Any]) -> Upstream:
    """`raw`: its config.json. Raises CannotBuild for what is known before the converter runs."""
    named = [names[0] for part in (raw, raw.get("text_config") or {}) if (names := part.get("architectures"))]
    if not named:
        raise CannotBuild("config.json names no 'architectures'; take the one of the original model")
    converter = installed()
    if converter and not set(named) & architectures(converter):
        raise CannotBuild(f"architecture '{named[0]}' is known neither to our converter to gguf nor to llama.cpp's own")
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise CannotBuild(
                f"architecture '{named[0]}' is converted by llama.cpp's own converter, which wants '{module}'; "
                "pip install 'enginehouse[optimize]'"
            )
    if not (folder / "tokenizer.json").exists():
        raise CannotBuild(
            "there is no 'tokenizer.json'; make it: AutoTokenizer.from_pretrained(..).save_pretrained(..)"
        )
    stored: dict[str, int] = dict.fromkeys(ITEM_BYTES, 0)
    for name, tensor in list_tensors(folder).items():
        if tensor.dtype not in ITEM_BYTES and len(tensor.shape) > 1:
            raise CannotBuild(f"tensor '{name}' is stored as '{tensor.dtype}'; known: {', '.join(ITEM_BYTES)}")
        if len(tensor.shape) > 1:
            stored[tensor.dtype] += tensor.bytes
    return Upstream(folder, max(stored, key=stored.__getitem__))


def convert(conversion: Upstream, output: Path, precision: str, report: Report) -> None:
    """Writes `output` in "F32", "F16" or "BF16"; what llama.cpp wants in 32 bits is in 32 bits always."""
    report("convert", 0.0)
    converter = installed() or fetched()
    decide(conversion.folder, read_json(conversion.folder / "config.json"))  # now that it is here
    order = Convert(str(converter), str(conversion.folder), str(output), precision)
    run_blocking(f"{__name__}_process", order, Converted, report, "llama.cpp's converter")


def memory_bytes(folder: Path) -> int:
    """Of the converter: it holds one tensor at a time, in 32 bits and as it was and becomes, but a layer's experts are
    one. Measured: 0.8 GiB at 50 million weights in one tensor, 4.7 at 590 million."""
    weights: Counter[str] = Counter()
    for name, tensor in list_tensors(folder).items():
        weights[EXPERT.sub("", name)] += math.prod(tensor.shape)
    return RESIDENT_BYTES + BYTES_EACH * max(weights.values(), default=0)


def installed() -> Path | None:
    spec = importlib.util.find_spec("llama_cpp")
    beside = [Path(spec.origin).parent / "converter"] if spec and spec.origin else []
    return next((folder for folder in (*beside, kept()) if (folder / "conversion/__init__.py").exists()), None)


def kept() -> Path:
    return Path(KEPT).expanduser() / importlib.metadata.version(LIBRARY)


@functools.lru_cache(maxsize=4)
def architectures(converter: Path) -> frozenset[str]:
    """Of the models it makes that write text. Read, not run: it would import torch."""
    tree = ast.parse((converter / "conversion/__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == REGISTRY:
            assert node.value
            modules: dict[str, str] = ast.literal_eval(node.value)
            return frozenset(name for name, module in modules.items() if module not in NOT_DECODERS)
    raise CannotBuild(f"llama.cpp's converter in '{converter}' has no {REGISTRY}; remove that folder")


def fetched() -> Path:
    """Takes it out of the library's source distribution, whole or not at all, once for all processes."""
    target = kept()
    with Locks(target.parent).alone(target.name):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as work:
                download(Path(work), target.name)
                extract(Path(work)).rename(target)
    return target


def download(work: Path, version: str) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--retries", "1", "--no-deps"]
    wanted = ["--no-binary", LIBRARY, f"{LIBRARY}=={version}", "--dest", str(work)]
    try:
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        reason = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except subprocess.TimeoutExpired:
        reason = [f"no end after {DOWNLOAD_SECONDS:.0f} s"]
    if reason is not None:
        raise CannotBuild(
            f"llama.cpp's own converter is not installed, and pip cannot fetch the sources of {LIBRARY} {version}: "
            f"{''.join(reason)[:300]}; compile it here with `make install`, which brings the converter",
            environment=True,
        )


def extract(work: Path) -> Path:
    """The folder with the two packages it consists of."""
    with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
        sources = [member for member in archive if member.isfile() and member.name.endswith(".py")]
        archive.extractall(
            work, [member for member in sources if any(part in member.name for part in PARTS)], filter="data"
        )
    root, converter = next(path for path in work.iterdir() if path.is_dir()), work / "converter"
    converter.mkdir()
    for part, name in PARTS.items():
        shutil.move(root / part, converter / name)
    return converter
