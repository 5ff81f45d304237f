"""What OpenVINO computes an artifact in, and its KV cache: as the artifact demands, or as suits the device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "arithmetic"  # in an artifact: names the precision to compute in, where the device is not to choose


def precision(folder: Path, capable: Sequence[str], device: str = "CPU") -> str:
    """`capable`: the device's OPTIMIZATION_CAPABILITIES; `device`: its kind."""
    if (folder / FILE).exists():
        return (folder / FILE).read_text()
    if device == "GPU":
        return "f16"
    return "bf16" if device == "CPU" and "BF16" in capable else "f32"


def kv_precision(folder: Path, precision: str) -> str:
    """Sixteen bits beside any arithmetic, unless the artifact demands 32."""
    if precision == "f32" and (folder / FILE).exists():
        return "f32"
    return "bf16" if precision == "bf16" else "f16"


def properties(folder: Path, core: Any) -> dict[str, Any]:
    """For this CPU. Both are always given: an IR names its own, and loading fails where the two disagree."""
    chosen = precision(folder, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return {"INFERENCE_PRECISION_HINT": chosen, "KV_CACHE_PRECISION": kv_precision(folder, chosen)}
