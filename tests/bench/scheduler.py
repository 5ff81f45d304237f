"""Two checkouts' engines over the same artifact, in turn: all slots answering together, and a prompt's first token.

`python -m tests.bench.scheduler OTHER [--source builtin:pocket] [--precision int8] [--runtimes llamacpp onnx]` prints
the median of each round's ratio, this checkout to the other: above 1 is faster. Beside the seconds it compares the CPU
seconds of the whole process, which other programs on the machine disturb less.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

SLOTS, CONTEXT, SHORT, LONG, TOKENS = 8, 1024, 16, 384, 96  # the rest in tokens
FIGURES = ("decode", "decode, CPU", "first token", "first token, CPU")


def work(runtime: str, path: str, threads: int) -> None:
    """Times the engine of the checkout it is run in, once for each seed on stdin: seconds for each figure."""
    from enginehouse.runtimes.contract import Load, Sampling
    from enginehouse.runtimes.engines import runtimes

    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = runtimes()[runtime].load(Load(runtime, path, CONTEXT, SLOTS, threads, 0), lambda fraction: None)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        chance = random.Random(int(line))

        def prompt(length: int, chance: random.Random = chance) -> list[int]:
            return [chance.randrange(engine.facts.vocabulary) for _ in range(length)]

        for job in range(SLOTS):
            engine.add(job, prompt(SHORT), Sampling(max_tokens=TOKENS, temperature=0, ignore_eos=True))
        began = set[int]()
        while len(began) < SLOTS:
            began |= {token.job for token in engine.step()}
        decode, cpu, tokens, over = time.perf_counter(), time.process_time(), 0, False
        while not over:
            said = engine.step()
            tokens, over = tokens + len(said), any(token.finish for token in said)
        figures = [(time.perf_counter() - decode) / tokens, (time.process_time() - cpu) / tokens]
        for job in range(SLOTS):
            engine.remove(job)
        engine.add(SLOTS, prompt(LONG), Sampling(temperature=0))
        first, cpu = time.perf_counter(), time.process_time()
        while not engine.step():
            pass
        figures += [time.perf_counter() - first, time.process_time() - cpu]
        engine.remove(SLOTS)
        print(json.dumps(figures), file=out, flush=True)


class Checkout:
    def __init__(self, root: Path, runtime: str, path: str, threads: int) -> None:
        from enginehouse.runtimes.engines import runtimes

        command = [sys.executable, "-c", Path(__file__).read_text(), "--work", runtime, path, str(threads)]
        environment = {**os.environ, **runtimes()[runtime].environment, "PYTHONPATH": str(root / "src")}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, cwd=root, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        assert self._read() == "ready"

    def time(self, seed: int) -> list[float]:
        self._process.stdin.write(f"{seed}\n")
        self._process.stdin.flush()
        figures: list[float] = json.loads(self._read())
        return figures

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> str:
        return str(self._process.stdout.readline()).strip()


async def build(source: str, runtime: str, precision: str) -> str:
    from enginehouse.optimize.prepare import locate, prepare
    from enginehouse.optimize.toolchains import toolchains
    from enginehouse.runtimes.engines import runtimes
    from tests.bench.http import HOME

    found = await locate(source, None, lambda stage, done: None)
    toolchain = toolchains()[runtimes()[runtime].format]
    own = toolchain.precisions.get(precision, precision)
    return (await prepare(found, toolchain, own, HOME, lambda stage, done: None, rules=None)).path


def main() -> None:
    from enginehouse.runtimes.pool import host

    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path)
    parser.add_argument("--source", default="builtin:pocket")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--runtimes", nargs="+", default=["llamacpp", "onnx"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    for runtime in arguments.runtimes:
        path = asyncio.run(build(arguments.source, runtime, arguments.precision))
        ours, other = (Checkout(root, runtime, path, host.cores()) for root in (Path.cwd(), arguments.other))
        ratios: list[list[float]] = []
        seen: list[list[float]] = []
        for seed in range(-1, arguments.rounds):
            pair = (ours, other) if seed % 2 else (other, ours)
            figures = {checkout: checkout.time(seed) for checkout in pair}
            if seed >= 0:  # the first is to warm up
                seen.append(figures[ours])
                ratios.append([b / a for a, b in zip(figures[ours], figures[other], strict=True)])
        for name, own, ratio in zip(FIGURES, zip(*seen, strict=True), zip(*ratios, strict=True), strict=True):
            low, middle, high = statistics.quantiles(ratio, n=4)
            milliseconds = 1000 * statistics.median(own)
            print(f"{runtime}, {name}: {milliseconds:.2f} ms, {middle:.3f} ({low:.3f} to {high:.3f})", flush=True)
        ours.close()
        other.close()


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
