"""What the surface costs: tokens per second with tools, with a schema and with both, against plain, in turn; and what
an API's renderer and the pipeline before it take for each delta of a stream.

`python -m tests.bench.surface [SOURCE] [--runtimes llamacpp ...] [--rounds 3]`; without a source, the shape of
Qwen3 0.6B, whose template knows no tools. Figures to quote are the ratios. `--deltas` measures the renderers alone, in
microseconds of processor time: seconds, and no model.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

import openai

from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.contract import Assigned, Delta, Done, Event, Job, Text, Usage
from enginehouse.runtimes.engines import runtimes
from enginehouse.server.api.chat.protocol import ChatRequest
from enginehouse.server.api.chat.protocol import Message as ChatMessage
from enginehouse.server.api.chat.render import ChatRenderer
from enginehouse.server.api.completions.protocol import CompletionRequest
from enginehouse.server.api.completions.render import CompletionRenderer
from enginehouse.server.api.messages.protocol import Message, MessageRequest
from enginehouse.server.api.messages.render import MessageRenderer
from enginehouse.server.api.responses.protocol import ResponseRequest
from enginehouse.server.api.responses.render import ResponseRenderer
from enginehouse.server.exchange import Answer, Renderer, merged, stream
from enginehouse.server.keepalive import first_of
from tests.bench.http import HOME
from tests.bench.shape import make
from tests.serving import Served, serve

TOKENS, SLOTS, TOOLS = 64, 8, 12
DELTAS, DELTA_ROUNDS = 20_000, 15
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
NAMED: list[Any] = [
    {"type": "function", "function": {"name": f"tool_{n}", "description": "Tells.", "parameters": PARAMETERS}}
    for n in range(TOOLS)
]
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": TOKENS}  # longer than any answer here
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": NUMBERS}}
ANIMALS = ("fox", "bear", "owl", "frog", "mouse", "duck", "cat", "dog", "horse")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "schema": {"response_format": FORMAT},
    "as long as with tools": {},
    "tools": {"tools": NAMED},
    "tools and schema": {"tools": NAMED, "response_format": FORMAT},
}
# The tools' share of a prompt, in words: what they cost beyond it is the surface's.
FILLER = {kind: "paper silver lemon " * 250 if kind == "as long as with tools" else "" for kind in KINDS}
LIKE = {"tools": "as long as with tools", "tools and schema": "as long as with tools"}  # to compare with, else plain


async def unsaved(response: dict[str, Any]) -> dict[str, Any]:
    return response


RENDERERS: dict[str, Callable[[], Renderer]] = {
    "chat": lambda: ChatRenderer(ChatRequest("model", [ChatMessage("user", "a")])),
    "completions": lambda: CompletionRenderer(CompletionRequest("model", "a")),
    "responses": lambda: ResponseRenderer(ResponseRequest("model", "a"), unsaved),
    "messages": lambda: MessageRenderer(MessageRequest("model", [Message("user", "a")], max_tokens=DELTAS)),
}


async def events() -> AsyncGenerator[Event, None]:
    yield Assigned("echo", "echo", "cpu", "because", "fp_1")
    for _ in range(DELTAS):
        yield Delta("word ")
    yield Done("stop", Usage(1, DELTAS))


async def render(renderer: Renderer) -> None:
    arriving = merged([events()])
    async for _ in stream(renderer, [Answer(Job("job", "model", Text("a")))], await first_of(arriving), arriving):
        pass


async def drain() -> None:
    async for _ in events():
        pass


def deltas() -> None:
    """Microseconds from an event of the pool's to its bytes in the body, less what it takes to make the event."""
    costs: dict[str, list[float]] = {name: [] for name in RENDERERS}

    def timed(work: Coroutine[Any, Any, None]) -> float:
        began = time.process_time()
        asyncio.run(work)
        return (time.process_time() - began) / DELTAS * 1e6

    for _ in range(DELTA_ROUNDS):
        for name, renderer in RENDERERS.items():
            costs[name].append(timed(render(renderer())) - timed(drain()))
    print("| renderer | us per delta, median | least |\n|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {statistics.median(cost):.2f} | {min(cost):.2f} |", flush=True)


async def speed(served: Served, requests: int, kind: str, seed: int) -> float:
    """Tokens of all answers per second after the first of each: prompts with tools are longer."""

    async def one(client: openai.AsyncOpenAI, number: int) -> tuple[float, float, int]:
        animal = ANIMALS[(seed + number) % len(ANIMALS)]
        messages: list[Any] = [{"role": "user", "content": FILLER[kind] + f"Tell me a story about a {animal}."}]
        first = last = 0.0
        stream: Any = await client.chat.completions.create(
            model="model",
            messages=messages,
            temperature=0,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={} if KINDS[kind] else {"ignore_eos": True},
            **KINDS[kind],
        )
        tokens = 0
        async for chunk in stream:
            if chunk.usage:
                tokens = chunk.usage.completion_tokens
            elif chunk.choices and chunk.choices[0].delta.role is None:
                last = time.perf_counter()
                first = first or last
        return first, last, tokens

    async with served.async_client.with_options(timeout=600) as client:
        answers = await asyncio.gather(*(one(client, number) for number in range(requests)))
    begun, ended = min(a[0] for a in answers), max(a[1] for a in answers)
    return sum(a[2] for a in answers) / (ended - begun)


def answers(served: Served, kind: str) -> bool:
    """Warms it up; False where the model's form of calls cannot be told from the schema's."""
    try:
        asyncio.run(speed(served, 1, kind, 0))
    except openai.BadRequestError:
        return False
    return True


async def built(source: str, runtime: str) -> str:
    toolchain = toolchains()[runtimes()[runtime].format]
    found = await locate(source, None, lambda stage, done: None)
    precision = toolchain.precisions["int4"]
    return (await prepare(found, toolchain, precision, HOME, lambda stage, done: None, rules=None)).path


def main(source: str, names: list[str], rounds: int) -> None:
    print("| engine | requests | " + " | ".join(KINDS) + " |\n|---|---|" + "---|" * len(KINDS), flush=True)
    for name in names:
        model = {"source": asyncio.run(built(source, name)), "runtime": name, "context": 4096, "slots": SLOTS}
        with tempfile.TemporaryDirectory() as folder, serve(Path(folder), {"model": model}) as served:
            refused = [kind for kind in KINDS if not answers(served, kind)]
            for requests in (1, SLOTS):
                speeds: dict[str, list[float]] = {kind: [] for kind in KINDS if kind not in refused}
                for seed in range(rounds):
                    for kind, of_kind in speeds.items():
                        of_kind.append(asyncio.run(speed(served, requests, kind, seed)))
                medians = {kind: statistics.median(of_kind) for kind, of_kind in speeds.items()}
                cells = [
                    f"{medians[kind]:.1f} ({medians[kind] / medians[LIKE.get(kind, 'plain')]:.2f})"
                    if kind in medians
                    else "refused"
                    for kind in KINDS
                ]
                print(f"| {name} | {requests} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?")
    parser.add_argument("--runtimes", nargs="+", default=["llamacpp", "onnx", "openvino"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deltas", action="store_true")
    arguments = parser.parse_args()
    deltas()
    if arguments.deltas:
        raise SystemExit
    main(arguments.source or str(make(HOME / "qwen3-0.6b-shape")), arguments.runtimes, arguments.rounds)
