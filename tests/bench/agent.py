"""A coding agent's conversation: a system prompt and twenty tools, ten turns that read files, 20,000 tokens at last.

`python -m tests.bench.agent [--source FILE.gguf] [--runtime llamacpp] [--binary LLAMA_SERVER] [--turns 10]` prints each
turn's prompt, what of it was reused, and the seconds to its first token; then of one more turn after the model was
unloaded, after a restart of the server and after kill -9 of everything; llama-server's own turns beside, in turn, and
that after its restart. Without --source it is SmolLM2 told that it takes 32,768 tokens: what it says there is noise.
"""

import argparse
import asyncio
import inspect
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import msgspec
import psutil

from enginehouse.optimize.prepare import locate
from enginehouse.runtimes.worker.__main__ import REST_SECONDS
from tests.bench.http import HOME
from tests.bench.llama_server import llama_server
from tests.bench.quality import quiet
from tests.serving import Served, serve

CONTEXT, TOKENS, TOOLS = 32_768, 48, 20
SYSTEM_LETTERS, RESULT_LETTERS = 22_000, 2_600  # about a third as many tokens
MODULES: tuple[ModuleType, ...] = (argparse, asyncio, json, random, inspect, shutil, statistics, tempfile)


class Turn(msgspec.Struct, frozen=True):
    prompt: int  # tokens
    cached: int
    first: float  # seconds
    said: str


def widened(file: Path) -> Path:
    """A copy of SmolLM2 that says it takes so many tokens."""
    import gguf

    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(asyncio.run(locate("builtin:smollm2", None, quiet)).path, file.with_suffix(".part"))
        reader = gguf.GGUFReader(file.with_suffix(".part"), "r+")
        field = reader.fields["llama.context_length"]
        field.parts[field.data[0]][0] = CONTEXT
        reader.data.flush()
        file.with_suffix(".part").rename(file)
    return file


def tool(number: int) -> dict[str, Any]:
    name, about = list(vars(os).items())[-number - 1]
    schema = {
        "path": {"type": "string", "description": f"a file of the project; {(about.__doc__ or '')[:160]}"},
        "lines": {"type": "array", "items": {"type": "integer"}, "description": "from and to"},
    }
    parameters = {"type": "object", "properties": schema, "required": ["path"]}
    return {"type": "function", "function": {"name": f"{name.strip('_')}_{number}", "parameters": parameters}}


def opening(seed: str) -> list[dict[str, str]]:
    """The tools stand in the system message: not every template has a place for them."""
    tools = json.dumps([tool(number) for number in range(TOOLS)])
    text = "".join(inspect.getdoc(thing) or "" for module in MODULES for thing in vars(module).values())
    return [{"role": "system", "content": f"Session {seed}.\n{text[: SYSTEM_LETTERS - len(tools)]}\n{tools}"}]


def question(number: int) -> dict[str, str]:
    source = inspect.getsource(MODULES[number % len(MODULES)])
    start = number * RESULT_LETTERS % max(1, len(source) - RESULT_LETTERS)
    return {"role": "user", "content": f"The file says:\n{source[start : start + RESULT_LETTERS]}\nWhat is next?"}


def ask(root: str, messages: list[dict[str, str]]) -> Turn:
    body = {"model": "model", "messages": messages, "max_tokens": TOKENS, "temperature": 0, "stream": True}
    began, first, said, usage = time.perf_counter(), 0.0, "", dict[str, Any]()
    with httpx.stream(
        "POST", f"{root}/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}, timeout=3600
    ) as response:
        for line in response.iter_lines():
            event = json.loads(line[6:]) if line.startswith("data: {") else {}
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                if piece := choice["delta"].get("content"):
                    first = first or time.perf_counter() - began
                    said += piece
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Turn(usage["prompt_tokens"], cached, first, said)


def talk(root: str, messages: list[dict[str, str]], number: int, name: str) -> None:
    """One more turn, which is added to the messages."""
    messages.append(question(number))
    turn = ask(root, messages)
    messages.append({"role": "assistant", "content": turn.said})
    print(f"{name}: {turn.prompt} tokens, {turn.cached} reused, first token after {turn.first:.2f} s", flush=True)


def unload(served: Served) -> None:
    while any("enginehouse.runtimes.worker" in child.cmdline() for child in served.children()):
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path)
    parser.add_argument("--runtime", default="llamacpp")
    parser.add_argument("--binary")
    parser.add_argument("--turns", type=int, default=10)
    arguments = parser.parse_args()
    source = str(arguments.source or widened(HOME / "smollm2-32k.gguf"))
    model = {"source": source, "runtime": arguments.runtime, "context": CONTEXT, "slots": 2, "keep_alive": "60s"}
    messages = {name: opening(name) for name in ("enginehouse", "llama-server")}
    with tempfile.TemporaryDirectory() as folder:
        with ExitStack() as stack:
            served = stack.enter_context(serve(Path(folder), {"model": model}))
            roots = {"enginehouse": served.root}
            if arguments.binary:
                roots["llama-server"] = stack.enter_context(llama_server(arguments.binary, source, 2, CONTEXT, []))
            for root in roots.values():
                ask(root, [{"role": "user", "content": "Hello."}])
            for number in range(arguments.turns):
                for name, root in roots.items():
                    talk(root, messages[name], number, f"turn {number + 1}, {name}")
            unload(served)
            talk(served.root, messages["enginehouse"], arguments.turns, "after it was unloaded, enginehouse")
            time.sleep(REST_SECONDS + 5)
        if arguments.binary:
            with llama_server(arguments.binary, source, 2, CONTEXT, []) as root:
                talk(root, messages["llama-server"], arguments.turns, "after a restart, llama-server")
        with serve(Path(folder), {"model": model}) as served:
            talk(served.root, messages["enginehouse"], arguments.turns + 1, "after a restart, enginehouse")
            time.sleep(REST_SECONDS + 5)
            for process in (*served.children(), psutil.Process(served.process.pid)):
                process.kill()
        with serve(Path(folder), {"model": model}) as served:
            talk(served.root, messages["enginehouse"], arguments.turns + 2, "after kill -9, enginehouse")


if __name__ == "__main__":
    main()
