"""This server beside llama-server of the same commit, over HTTP, in turn, in one sitting.

`python -m tests.bench.llama_server BINARY [--source FOLDER] [--precision Q4_K_M] [--parts crowd prompts turns edit]`
prints every figure as a ratio to llama-server's (in its own best setting, as found out in the same run), keeps them as
JSON and draws them. The binary is built from the llama-cpp-python sdist's vendor/llama.cpp. Without --source it is
Qwen3-0.6B's shape with random weights, of which `edit` says nothing.

crowd: tokens per second, time to the first token and between tokens at so many streams, prompts of about 350 tokens.
prompts: time to the first token of one prompt, by its length. turns: of a conversation's second turn, and of that after
a restart. edit: tokens per second alone where the answer repeats a file with a change.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.pool import host
from enginehouse.runtimes.worker.__main__ import REST_SECONDS
from tests.bench.http import HOME
from tests.bench.shape import LETTERS, make
from tests.serving import free_port, serve

PROMPT_WORDS, TOKENS = 118, 64  # a word and its space are three tokens
PARTS = ("crowd", "prompts", "turns", "edit")
SETTINGS = {"llama-server": ["--no-kv-unified"], "llama-server, one cache": ["--kv-unified"]}


class Measured(msgspec.Struct):
    part: str
    at: str  # streams, tokens
    what: str
    figures: dict[str, list[float]]  # by server, of each round

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self.figures.items() if values}


class Answer(msgspec.Struct):
    tokens: int
    first: float  # seconds
    last: float


async def answer(client: httpx.AsyncClient, url: str, model: str, path: str, **fields: Any) -> Answer:
    body: dict[str, Any] = {
        "model": model,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "max_tokens": TOKENS,
    } | fields
    began, first, last = time.perf_counter(), 0.0, 0.0
    async with client.stream("POST", f"{url}/v1/{path}", json=body, timeout=1200) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            event = json.loads(line[6:]) if line.startswith("data: {") else {}
            assert "error" not in event, event
            choices = event.get("choices")
            if choices and (choices[0].get("text") or choices[0].get("delta", {}).get("content")):
                last = time.perf_counter() - began
                first = first or last
    return Answer(body["max_tokens"], first, last)


async def together(url: str, model: str, prompts: list[str], tokens: int = TOKENS) -> dict[str, float]:
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
        began = time.perf_counter()
        answers = await asyncio.gather(
            *(
                answer(client, url, model, "chat/completions", messages=[{"role": "user", "content": prompt}])
                for prompt in prompts
            )
        )
        seconds = time.perf_counter() - began
    return {
        "tokens/s": len(prompts) * tokens / seconds,
        "first token, s": statistics.median(one.first for one in answers),
        "between tokens, s": statistics.median((one.last - one.first) / (tokens - 1) for one in answers),
    }


def words(chance: random.Random, count: int) -> str:
    return " ".join("".join(chance.choices(LETTERS, k=4)) for _ in range(count))


CODE = "\n\n".join(
    f"def {name}(values):\n    total = 0\n    for value in values:\n        total += {term}\n    return total / {by}"
    for name, term, by in (
        ("mean", "value", "len(values)"),
        ("mean_square", "value * value", "len(values)"),
        ("mean_cube", "value ** 3", "len(values)"),
        ("distance", "abs(value - values[0])", "2"),
        ("weight", "value * weights[value]", "sum(weights)"),
    )
)


Places = dict[str, tuple[str, str]]  # by server: where it answers, and as which model


def rounds(
    places: Places, count: int, part: str, at: str, ask: Callable[[str, str, int], dict[str, float]]
) -> Iterator[Measured]:
    """All servers in turn, so many times. `ask` takes a URL, a model and the round."""
    seen: dict[str, dict[str, list[float]]] = {}
    for number in range(count):
        for name, (url, model) in places.items():
            for what, value in ask(url, model, number).items():
                seen.setdefault(what, {}).setdefault(name, []).append(value)
    for what, figures in seen.items():
        yield Measured(part, at, what, figures)


def crowd(places: Places, arguments: argparse.Namespace) -> Iterator[Measured]:
    for streams in arguments.streams:

        def ask(url: str, model: str, number: int, streams: int = streams) -> dict[str, float]:
            chance = random.Random(1000 * streams + number)
            prompts = [words(chance, PROMPT_WORDS) for _ in range(streams)]
            return asyncio.run(together(url, model, prompts))

        yield from rounds(places, arguments.rounds, "crowd", str(streams), ask)


def prompts(places: Places, arguments: argparse.Namespace) -> Iterator[Measured]:
    for tokens in arguments.prompt_tokens:

        def ask(url: str, model: str, number: int, tokens: int = tokens) -> dict[str, float]:
            prompt = words(random.Random(tokens + number), tokens // 3)
            found = asyncio.run(together(url, model, [prompt]))
            return {"first token, s": found["first token, s"]}

        yield from rounds(places, arguments.rounds, "prompts", str(tokens), ask)


def turns(places: Places, arguments: argparse.Namespace) -> Iterator[Measured]:
    tokens = max(arguments.prompt_tokens)

    def ask(url: str, model: str, number: int) -> dict[str, float]:
        prompt = words(random.Random(-tokens - number), tokens // 3)
        first = asyncio.run(together(url, model, [prompt]))
        second = asyncio.run(together(url, model, [prompt + " and then?"]))
        return {"first turn, s": first["first token, s"], "second turn, s": second["first token, s"]}

    yield from rounds(places, arguments.rounds, "turns", str(tokens), ask)


def edit(places: Places, arguments: argparse.Namespace) -> Iterator[Measured]:
    def ask(url: str, model: str, number: int) -> dict[str, float]:
        lines = CODE.splitlines()
        chance = random.Random(number)
        listed = "\n\n".join(chance.sample(CODE.split("\n\n"), 5))
        prompt = (
            f"# stats.py\n{listed}\n\n# stats.py, once more, with a new name for 'total'\n{lines[0]}\n    result = 0\n"
        )

        async def one() -> Answer:
            async with httpx.AsyncClient() as client:
                return await answer(client, url, model, "completions", prompt=prompt, max_tokens=160)

        found = asyncio.run(one())
        return {"tokens/s": (found.tokens - 1) / (found.last - found.first)}

    yield from rounds(places, arguments.rounds, "edit", "1", ask)


MEASURES = {"crowd": crowd, "prompts": prompts, "turns": turns, "edit": edit}


@contextmanager
def llama_server(binary: str, gguf: str, slots: int, context: int, further: list[str]) -> Iterator[str]:
    port, threads = free_port(), str(host.cores())
    command = [binary, "-m", gguf, "--host", "127.0.0.1", "--port", str(port), "--parallel", str(slots)]
    command += ["-c", str(slots * context), "-t", threads, "-tb", threads, "--no-ui", *further]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def artifact(source: str, precision: str) -> str:
    async def build() -> str:
        found = await locate(source, None, lambda stage, done: None)
        if found.kind == "gguf":
            return found.path
        gguf = toolchains()["gguf"]
        return (await prepare(found, gguf, precision, HOME, lambda stage, done: None, rules=None)).path

    return asyncio.run(build())


def after_restart(arguments: argparse.Namespace, models: dict[str, Any], tokens: int) -> Measured:
    """Ours alone: llama-server keeps nothing."""
    prompt = words(random.Random(-7 * tokens), tokens // 3)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for when in ("cold", "after a restart"):
            with serve(Path(folder), models) as ours:
                asyncio.run(together(ours.root, "llamacpp", [words(random.Random(1), 8)]))
                seconds = asyncio.run(together(ours.root, "llamacpp", [prompt]))["first token, s"]
                found[f"enginehouse, {when}"] = [seconds]
                if when == "cold":
                    time.sleep(REST_SECONDS + 5)
    return Measured("turns", str(tokens), "first token, s", found)


def line(measured: Measured) -> str:
    medians = measured.medians()
    theirs = [value for name, value in medians.items() if name in SETTINGS]
    lower = measured.what != "tokens/s"
    best = (min if lower else max)(theirs) if theirs else float("nan")
    shown = ", ".join(f"{name} {value:.3g} ({value / best:.2f}x)" for name, value in medians.items())
    return f"{measured.part} {measured.at}, {measured.what}: {shown}"


def draw(rows: list[Measured], file: Path) -> None:
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys((row.part, row.what) for row in rows))
    figure = Figure(figsize=(6 * min(3, len(kinds)), 4 * -(-len(kinds) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(kinds) // 3), min(3, len(kinds)), squeeze=False).flat
    for axis, (part, what) in zip(axes, kinds, strict=False):
        own = [row for row in rows if (row.part, row.what) == (part, what)]
        for name in dict.fromkeys(name for row in own for name in row.medians()):
            points = [(row.at, row.medians()[name]) for row in own if name in row.medians()]
            axis.plot([at for at, _ in points], [value for _, value in points], "o-", label=name)
        axis.set(title=f"{part}: {what}", xlabel="streams" if part in ("crowd", "edit") else "tokens of the prompt")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--source")
    parser.add_argument("--precision", default="Q4_K_M")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runtimes", nargs="+", default=["llamacpp"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--prompt-tokens", nargs="+", type=int, default=[64, 512, 2048, 6144])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("llama_server"), help="of OUT.json and OUT.png")
    arguments = parser.parse_args()
    source = arguments.source or str(make(HOME / "qwen3-0.6b-shape"))
    gguf, slots = artifact(source, arguments.precision), max(arguments.streams)
    context = max(1024, 256 + max(arguments.prompt_tokens) * 5 // 4 if {"prompts", "turns"} & {*arguments.parts} else 0)
    common = {"slots": slots, "context": context, "keep_alive": "forever"}
    models = {
        name: common
        | (
            {"source": gguf, "runtime": name}
            if name == "llamacpp"
            else {"source": source, "runtime": name, "precision": "int4"}
        )
        for name in arguments.runtimes
    }
    rows: list[Measured] = []

    def note(row: Measured) -> None:
        rows.append(row)
        print(line(row), flush=True)
        arguments.out.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(rows)))

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {
            name: (stack.enter_context(llama_server(arguments.binary, gguf, slots, context, further)), "x")
            for name, further in SETTINGS.items()
        }
        ours = stack.enter_context(serve(folder, models, {"ENGINEHOUSE_CACHE_DIR": str(HOME)}))
        urls |= {f"enginehouse, {name}": (ours.root, name) for name in models}
        for url, model in urls.values():
            asyncio.run(together(url, model, [words(random.Random(0), 8)]))
        for part in arguments.parts:
            for row in MEASURES[part](urls, arguments):
                note(row)
    if "turns" in arguments.parts:
        note(after_restart(arguments, models, max(arguments.prompt_tokens)))
    draw(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
