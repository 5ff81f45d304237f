"""A table of how far each precision is from its source: `python -m tests.bench.quality SOURCE [--precisions ...]`.

Artifacts are built in, and taken from, the folder given with --cache.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from enginehouse.optimize.artifact import Artifact, CannotBuild, Source
from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains

SPREAD = {
    "gguf": "Q4_0 Q4_K_S Q4_K_M Q5_K_M Q6_K Q8_0 BF16",
    "openvino": "INT4_SYM_G128 INT4_ASYM_G64 INT4_ASYM_G32 INT4_ASYM_G32_AWQ INT4_ASYM_G64_AWQ_SE INT8_ASYM BF16",
    "onnx": "INT4_B128 INT4_B32 INT4_B32_H8 INT4_B32_KQUANT_H8 INT8_B32 F32",
    "mlx": "4bit-g64 4bit-g32 mixed_4_6 8bit-g64 bf16",
}
ALL = [f"{name}:{precision}" for name, precisions in SPREAD.items() for precision in precisions.split()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("source")
    options.add_argument("--precisions", nargs="+", default=ALL, metavar="FORMAT:PRECISION")
    options.add_argument("--cache", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(table(given.source, given.precisions, given.cache or Path(folder)))


async def table(name: str, precisions: list[str], cache: Path) -> None:
    source = await locate(name, None, quiet)
    print(
        "| format | precision | divergence | worst in 100 | agreement | perplexity | accuracy | texts | MiB | s |",
        flush=True,
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for chosen in precisions:
        kind, _, precision = chosen.partition(":")
        print(await row(source, kind, precision, cache), flush=True)


async def row(source: Source, kind: str, precision: str, cache: Path) -> str:
    began = time.monotonic()
    try:
        artifact = await prepare(source, toolchains()[kind], precision, cache, quiet)
        return f"{figures(artifact)} {time.monotonic() - began:.0f} |"
    except CannotBuild as error:
        return f"| {kind} | {precision} | {error} | | | | | | | |"


def figures(artifact: Artifact) -> str:
    quality = artifact.quality
    assert quality
    numbers = f"{quality.divergence:.5f} | {quality.divergence_99:.4f} | {quality.agreement:.4f}"
    rest = f"{quality.perplexity:.4f} | {quality.accuracy} | {quality.texts} of {quality.of_texts}"
    return f"| {artifact.format} | {artifact.precision} | {numbers} | {rest} | {artifact.bytes / (1 << 20):.1f} |"


def quiet(stage: str, fraction: float) -> None: ...


if __name__ == "__main__":
    main()
