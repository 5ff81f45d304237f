"""Who converts a checkpoint: our own converter the families it has been proven on, llama.cpp's all others."""

from pathlib import Path

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.quantizations import already_quantized
from enginehouse.optimize.toolchains.gguf import conversion, upstream
from enginehouse.optimize.toolchains.gguf.conversion import Conversion
from enginehouse.optimize.toolchains.gguf.families import FAMILIES
from enginehouse.optimize.toolchains.gguf.upstream import Upstream


def decide(folder: Path) -> Conversion | Upstream:
    """Reads configs and headers, no weights; raises CannotBuild for what neither knows."""
    raw = read_json(folder / "config.json")
    if not raw:
        raise CannotBuild(f"'{folder}' has no 'config.json'; give a Hugging Face model folder")
    if reason := already_quantized(raw):
        raise CannotBuild(reason)
    family = FAMILIES.get((raw.get("architectures") or ["none"])[0])
    return conversion.decide(folder, raw, family) if family else upstream.decide(folder, raw)


def convert(decided: Conversion | Upstream, output: Path, precision: str, report: Report) -> None:
    """Writes `output` in "F32", "F16" or "BF16"."""
    if isinstance(decided, Upstream):
        upstream.convert(decided, output, precision, report)
    else:
        from enginehouse.optimize.toolchains.gguf.convert import convert

        convert(decided, output, precision, report)
