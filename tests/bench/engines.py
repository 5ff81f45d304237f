"""Every engine and precision on one model shape: size, build seconds and memory, load, prefill and decode. One sitting.

`python -m tests.bench.engines [--only RUNTIME ...] [--precisions int4 int8 ...]` prints a Markdown table.
"""

import argparse
import asyncio
from pathlib import Path

from enginehouse.optimize.artifact import Artifact, CannotBuild, Recipe
from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.store import Store
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.contract import Load, Local
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.errors import EngineFailed, Unavailable
from enginehouse.runtimes.pool import host
from enginehouse.runtimes.pool.benchmark import measure
from enginehouse.runtimes.pool.routing import Figures
from enginehouse.runtimes.worker.client import Worker
from tests.bench.http import HOME
from tests.bench.shape import make

CONTEXT, SLOTS = 2048, 8
HEAD = (
    "| engine | precision | size MB | of bf16 | build s | peak MB | of bf16 | load s | prefill | alone | 8 together |"
)


async def main(only: list[str], precisions: list[str]) -> None:
    source = await locate(str(make(HOME / "qwen3-0.6b-shape")), None, lambda stage, done: None)
    print(HEAD + "\n|" + "---|" * 11, flush=True)
    for runtime in runtimes().values():
        if runtime.name == "echo" or (only and runtime.name not in only) or runtime.unavailable():
            continue
        toolchain = toolchains()[runtime.format]
        for precision in precisions:
            own = toolchain.precisions.get(precision)
            if own is None:
                continue
            try:
                artifact = await prepare(source, toolchain, own, HOME, lambda stage, done: None, rules=None)
                figures = await figures_of(runtime, artifact)
            except (CannotBuild, Unavailable, EngineFailed) as error:
                print(f"| {runtime.name} | {own} | {error} |", flush=True)
                continue
            key = Recipe(toolchain.format, own, source.fingerprint, toolchain.versions()).key
            manifest = Store(HOME).manifest(key)
            assert manifest
            row = (
                f"{artifact.bytes / 1e6:.0f}",
                f"{artifact.bytes / source.bytes:.2f}",
                f"{sum(manifest.seconds.values()):.0f}",
                f"{manifest.peak_bytes / 1e6:.0f}",
                f"{manifest.peak_bytes / source.bytes:.2f}",
                f"{figures.load_seconds:.1f}",
                f"{figures.prefill:.0f}",
                f"{figures.decode:.1f}",
                f"{figures.decode_crowd:.1f}",
            )
            print(f"| {runtime.name} | {own} | {' | '.join(row)} |", flush=True)


async def figures_of(runtime: Local, artifact: Artifact) -> Figures:
    worker = Worker(runtime.name)
    load = Load(runtime.name, artifact.path, CONTEXT, SLOTS, host.cores(), host.free_memory())
    await worker.start(load, runtime.environment, lambda fraction: None)
    try:
        return await measure(worker)
    finally:
        worker.close()
        await worker.closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--precisions", nargs="+", default=["int4", "int8", "bf16", "f16", "f32"])
    arguments = parser.parse_args()
    assert Path("tests").exists(), "run it from the repository's root"
    asyncio.run(main(arguments.only, arguments.precisions))
