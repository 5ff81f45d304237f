"""Quality, size and speed of recipes side by side: how each is chosen. Prints a Markdown table.

`python -m tests.bench.recipes [SOURCE] [--precisions FORMAT:PRECISION ...] [--accuracy N]`. Accuracy is of answers to
the first N items of each skill in config/pocket/eval.jsonl, through the server; 0 leaves it out. Sizes and speeds
against 16 bits (onnx: 32) on the same engine, which therefore comes first.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from pathlib import Path

from enginehouse.config.pocket.training.evaluate import EVAL, Item, ask_server, is_right
from enginehouse.optimize.artifact import Artifact
from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.pool.routing import Figures
from tests.bench.engines import figures_of
from tests.bench.http import HOME
from tests.serving import serve

LADDERS = [f"{kind}:{precision}" for kind, chain in toolchains().items() for precision in reversed(list(chain.ladder))]
HEAD = "| engine | precision | KL | top-1 | perplexity | accuracy | of 16 bits | alone | 8 together |"


def main(name: str, precisions: list[str], per_skill: int) -> None:
    source = asyncio.run(locate(name, None, quiet))
    engines = {runtime.format: runtime for runtime in runtimes().values()}
    items = first_of_each_skill(per_skill)
    base: dict[str, tuple[Artifact, Figures]] = {}
    print(HEAD + "\n|" + "---|" * 9, flush=True)
    for chosen in precisions:
        kind, _, precision = chosen.partition(":")
        artifact = asyncio.run(prepare(source, toolchains()[kind], precision, HOME, quiet))
        speeds = asyncio.run(figures_of(engines[kind], artifact))
        whole, exact = base.setdefault(kind, (artifact, speeds))
        quality = artifact.quality
        assert quality
        cells = (
            f"{quality.divergence:.5f}",
            f"{quality.agreement:.4f}",
            f"{quality.perplexity:.4f}",
            accuracy(items, artifact, engines[kind].name) if items else "",
            f"{artifact.bytes / whole.bytes:.2f}",
            f"{speeds.decode:.0f} ({speeds.decode / exact.decode:.2f})",
            f"{speeds.decode_crowd:.0f} ({speeds.decode_crowd / exact.decode_crowd:.2f})",
        )
        print(f"| {engines[kind].name} | {precision} | {' | '.join(cells)} |", flush=True)


def first_of_each_skill(count: int) -> list[Item]:
    items = [json.loads(line) for line in EVAL.read_text(encoding="utf-8").splitlines()]
    seen: Counter[str] = Counter()
    chosen = []
    for item in items:
        seen[item["skill"]] += 1
        if seen[item["skill"]] <= count:
            chosen.append(item)
    return chosen


def accuracy(items: list[Item], artifact: Artifact, runtime: str) -> str:
    model = {"source": artifact.path, "runtime": runtime, "keep_alive": "forever"}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), {"model": model}) as served:
        answers = ask_server(items, f"{served.root}/v1", "model")
    right = sum(is_right(item, answer) for item, answer in zip(items, answers, strict=True))
    return f"{right / len(items):.1%} of {len(items)}"


def quiet(stage: str, fraction: float) -> None: ...


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?", default="builtin:pocket")
    parser.add_argument("--precisions", nargs="+", default=LADDERS)
    parser.add_argument("--accuracy", type=int, default=24)
    arguments = parser.parse_args()
    main(arguments.source, arguments.precisions, arguments.accuracy)
