"""Folders for MLX: a Hugging Face checkpoint quantized and packed as mlx_lm does it."""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import CannotBuild, Report, Source, Toolchain, bytes_in_16_bits
from enginehouse.optimize.sources.gguf_checkpoint import config_of
from enginehouse.optimize.toolchains.mlx.convert import Plan, convert
from enginehouse.optimize.toolchains.mlx.families import FAMILIES, refusal

if TYPE_CHECKING:
    import numpy as np

TOOLCHAIN_VERSION = "1"  # raise it with every change to the bytes this toolchain writes
GROUPS = {3: (64,), 4: (32, 64, 128), 5: (64,), 6: (64,), 8: (32, 64, 128)}
MIXTURES = {"mixed_3_4": 3, "mixed_3_6": 3, "mixed_4_6": 4}  # mlx_lm's -> the bits of most layers
PLANS = {
    "bf16": Plan(dtype="bfloat16"),
    "f16": Plan(dtype="float16"),
    "f32": Plan(dtype="float32"),
    **{f"{bits}bit-g{group}": Plan(bits, group) for bits, groups in GROUPS.items() for group in groups},
    **{name: Plan(bits, mixture=name) for name, bits in MIXTURES.items()},
    "mixed_4_6-g32": Plan(4, 32, others=6),  # ours: six bits for all but gate and up
}
DTYPE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32}
GROUP_BITS = 64  # a scale and a bias beside each group, in 32 bits at the most
MIXED_EXTRA_BITS = 1.5  # for a weight, over the bits of most layers
OVERHEAD_BYTES = 64 * 2**20  # tokenizer and rounding
RESIDENT_BYTES = 100 << 20  # of the process, without weights


def build(source: Source, precision: str, folder: Path, report: Report) -> None:
    """Writes weights, config.json and the tokenizer's files into the folder."""
    if reason := refuses(source):
        raise CannotBuild(reason)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    convert(Path(source.path), PLANS[precision], folder, report)


def logits(path: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    from enginehouse.optimize.toolchains.mlx.logits import logits

    return logits(path, sequences)


def refuses(source: Source) -> str | None:
    """Looks at configs and file names only."""
    if source.kind not in ("checkpoint", "gguf"):
        return f"an mlx folder is not built from '{source.kind}'; give a Hugging Face folder"
    try:
        config = config_of(source)
    except CannotBuild as error:
        return str(error)
    return refusal(config, None if source.kind == "gguf" else Path(source.path))


def proven(source: Source) -> bool:
    try:
        return source.kind == "mlx" or config_of(source).get("model_type") in FAMILIES
    except CannotBuild:
        return False


def needs_bytes(source: Source, precision: str) -> int:
    """Bytes on disk while building: the result alone."""
    plan = PLANS[precision]
    if plan.bits:
        each = (plan.others or plan.bits) + GROUP_BITS / plan.group + (MIXED_EXTRA_BITS if plan.mixture else 0)
    else:
        each = DTYPE_BITS[plan.dtype or "float32"]
    return int((source.parameters or source.bytes // 2) * each / 8) + OVERHEAD_BYTES


def memory_bytes(source: Source, precision: str) -> int:
    """Measured on 0.6B: 0.65 times the 16-bit weights for 4 bits, 0.85 for 8, 1.05 for 16, twice that for 32."""
    plan = PLANS[precision]
    ratio = 0.45 + (plan.others or plan.bits) / 20 if plan.bits else 1.05 * DTYPE_BITS[plan.dtype or "float32"] / 16
    return int(bytes_in_16_bits(source) * ratio) + RESIDENT_BYTES


def unavailable() -> str | None:
    if sys.platform not in ("darwin", "linux"):
        return "MLX runs on macOS and Linux only"
    for module, distribution in (("mlx", "mlx"), ("mlx_lm", "mlx-lm")):
        if importlib.util.find_spec(module) is None:
            return f"'{distribution}' is not installed; pip install 'enginehouse[mlx]'"
    return None


def versions() -> dict[str, str]:
    tools = {name: importlib.metadata.version(name) for name in ("mlx", "mlx-lm")}
    return {"enginehouse-mlx": TOOLCHAIN_VERSION} | tools


TOOLCHAIN = Toolchain(
    format="mlx",
    precisions={"int4": "4bit-g64", "int8": "8bit-g64", "16bit": "bf16", **{name: name for name in PLANS}},
    unavailable=unavailable,
    versions=versions,
    refuses=refuses,
    needs_bytes=needs_bytes,
    memory_bytes=memory_bytes,
    seconds_per_gib={"convert": 2, "quantize": 4, "check": 1},
    start_seconds=2.0,
    build=build,
    logits=logits,
    entry="",
    ladder={
        "4bit-g64": "mlx_lm's own default",
        "mixed_4_6-g32": "six bits but for gate and up: SmolLM2 0.073 (reckoned in PyTorch), 4bit-g32 0.343",
        "8bit-g64": "untouched by the outliers that destroy four bits (0.00005, tests/optimize/quality/test_gate.py)",
        "bf16": "the checkpoint itself",
    },
    proven=proven,
)
