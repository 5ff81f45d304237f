"""GGUF files for llama.cpp: converted from a Hugging Face checkpoint by us or by its own converter, quantized by it."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import CannotBuild, Report, Source, Toolchain, bytes_in_16_bits
from enginehouse.optimize.sources.gguf_header import ALIASES, read_header
from enginehouse.optimize.toolchains.gguf.families import FAMILIES

if TYPE_CHECKING:
    import numpy as np

TOOLCHAIN_VERSION = "1"  # raise it with every change to the bytes this toolchain writes
ENTRY = "model.gguf"
# own name -> bits for a weight, embeddings and norms counted in: what Qwen3 0.6B came to, generously
BITS = {
    "F32": 32.0, "F16": 16.1, "BF16": 16.1, "Q8_0": 8.7, "Q6_K": 7.0, "Q5_K_M": 6.3, "Q5_K_S": 6.2, "Q4_K_M": 5.6,
    "Q4_K_S": 5.4, "Q4_0": 5.4, "IQ4_XS": 5.2, "Q3_K_L": 5.2, "Q3_K_M": 4.9, "Q3_K_S": 4.6, "Q2_K": 4.2,
}  # fmt: skip
CONVERTED = {"F32", "F16", "BF16"}
OVERHEAD_BYTES = 64 * 2**20  # a large vocabulary, and alignment
RESIDENT_BYTES = 100 << 20  # of the process, without weights


def build(source: Source, precision: str, folder: Path, report: Report) -> None:
    """Writes model.gguf into the folder; what it began there it removes when it fails."""
    output, unfinished = folder / ENTRY, folder / f"{ENTRY}.part"
    try:
        if source.kind == "gguf":
            build_from_gguf(Path(source.path), precision, unfinished, report)
        else:
            build_from_checkpoint(Path(source.path), precision, unfinished, report)
        unfinished.rename(output)
    finally:
        unfinished.unlink(missing_ok=True)


def build_from_checkpoint(checkpoint: Path, precision: str, output: Path, report: Report) -> None:
    from enginehouse.optimize.toolchains.gguf.check import check
    from enginehouse.optimize.toolchains.gguf.checkpoint import convert, decide
    from enginehouse.optimize.toolchains.gguf.quantize import quantize

    decided = decide(checkpoint)
    if precision in CONVERTED:
        convert(decided, output, precision, report)
    else:
        lossless = decided.lossless_precision
        intermediate = output.with_name(f"model.{lossless}.gguf.part")
        try:
            convert(decided, intermediate, lossless, report)
            quantize(intermediate, output, precision, report)
        finally:
            intermediate.unlink(missing_ok=True)
    check(output, checkpoint, report)


def build_from_gguf(file: Path, precision: str, output: Path, report: Report) -> None:
    from enginehouse.optimize.toolchains.gguf.check import check
    from enginehouse.optimize.toolchains.gguf.quantize import quantize

    check_plain(file)
    quantize(file, output, precision, report)
    check(output, None, report)


def check_plain(file: Path) -> None:
    """Raises CannotBuild unless the file holds a whole model of 16- or 32-bit weights."""
    header = read_header(file)
    if header.quantized:
        raise CannotBuild(
            f"'{file.name}' is quantized already ('{header.precision}'); serve it as it is, or give the 16-bit model"
        )
    if header.parts > 1:
        raise CannotBuild(
            f"'{file.name}' is one of {header.parts} parts; join them first with llama-gguf-split --merge"
        )


def logits(path: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    from enginehouse.optimize.toolchains.gguf.logits import logits

    return logits(path, sequences)


def proven(source: Source) -> bool:
    """What llama.cpp's own converter made is compared as others' is."""
    return source.kind == "gguf" or source.architecture in FAMILIES


def refuses(source: Source) -> str | None:
    """Looks at configs and headers only."""
    try:
        if source.kind == "gguf":
            check_plain(Path(source.path))
        elif source.kind == "checkpoint":
            from enginehouse.optimize.toolchains.gguf.checkpoint import decide

            decide(Path(source.path))
        else:
            return f"a gguf file is not built from '{source.kind}'; give a Hugging Face folder or a .gguf file"
    except CannotBuild as refusal:
        return str(refusal)
    return None


def needs_bytes(source: Source, precision: str) -> int:
    """Bytes on disk while building: the result, and beside it the converted checkpoint it is quantized from."""
    weights = source.parameters or source.bytes // 2
    intermediate = 0 if source.kind == "gguf" or precision in CONVERTED else source.bytes
    return int(weights * BITS[precision] / 8) + intermediate + OVERHEAD_BYTES


def memory_bytes(source: Source, precision: str) -> int:
    """Measured on 0.6B: 1.05 times the 16-bit weights converted, 1.25 quantized; pages of mapped files counted in."""
    ours = int(bytes_in_16_bits(source) * (1.05 if precision in CONVERTED else 1.25)) + RESIDENT_BYTES
    if source.kind != "checkpoint" or source.architecture in FAMILIES:
        return ours
    from enginehouse.optimize.toolchains.gguf.upstream import memory_bytes

    return max(memory_bytes(Path(source.path)), ours)


def unavailable() -> str | None:
    for module, distribution in (
        ("llama_cpp", "llama-cpp-python"),
        ("gguf", "gguf"),
        ("tokenizers", "tokenizers"),
    ):
        if importlib.util.find_spec(module) is None:
            return f"'{distribution}' is not installed; pip install 'enginehouse[llamacpp]'"
    return None


def versions() -> dict[str, str]:
    return {
        "enginehouse-gguf": TOOLCHAIN_VERSION,
        "gguf": importlib.metadata.version("gguf"),
        "llama-cpp-python": importlib.metadata.version("llama-cpp-python"),
    }


TOOLCHAIN = Toolchain(
    format="gguf",
    precisions={**ALIASES, **{name: name for name in BITS}},
    unavailable=unavailable,
    versions=versions,
    refuses=refuses,
    needs_bytes=needs_bytes,
    memory_bytes=memory_bytes,
    seconds_per_gib={"convert": 2, "quantize": 13, "check": 2},
    start_seconds=0.5,
    build=build,
    logits=logits,
    entry=ENTRY,
    ladder={
        "Q4_K_M": "llama.cpp's own choice at four bits: the matrices that suffer most have six",
        "Q5_K_M": "a quarter of the divergence for an eighth more memory (pocket, our texts: 0.015, 0.060)",
        "Q8_0": "a sixtieth of it (0.001)",
        "BF16": "the checkpoint itself",
    },
    proven=proven,
)
