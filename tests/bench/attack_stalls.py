"""Attacks on everybody's time. Not here, for no client can make them at will: what an engine writes without line ends
(A8), measuring while idle (A20)."""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.bench.attack_lab import (
    CHAT,
    COMPLETIONS,
    FRANCE,
    MIB,
    PAUSE_SECONDS,
    RESPONSES,
    WATCH_SECONDS,
    Target,
    chat,
    held_to,
    record,
    stalls,
    tool,
    union,
)

LONG = "river stone " * 1500  # about 3000 tokens of the pocket model
LETTER = {"role": "user", "content": "a"}

# --- everything stops ---


@stalls("A4-header")
def endless_header(target: Target) -> None:
    """A header of 100 MiB."""
    target.flood(b"GET /v1/models HTTP/1.1\r\nx: ", 100)


@stalls("A4-headers")
def many_headers(target: Target) -> bool:
    """100 MiB of small headers."""
    before = target.memory()
    target.flood(b"GET /v1/models HTTP/1.1\r\n", 100, b"x-header: 0123456789\r\n")
    return target.memory() - before < 64 * MIB


@stalls("A4-url")
def endless_url(target: Target) -> None:
    """A URL of 32 MiB."""
    target.flood(b"GET /v1/models?", 32)


@stalls("A4-many")
def many_connections(target: Target) -> bool:
    """1,000 connections that send nothing, or a header's beginning; are all closed in 65 s?"""
    return target.closed([b"", b"GET / HTTP/1.1\r\nx: "] * 500, WATCH_SECONDS) == 1000


@stalls("A6")
def hung_disk(target: Target) -> bool:
    """Chat with a model whose config.json never ends, left after 0.4 s; then GET /v1/models."""
    for _ in range(min(32, (os.cpu_count() or 1) + 4) + 2):  # as many threads as asyncio has by default, and two
        target.send(CHAT, chat(model="hung"), 0.4)
    listed = target.send("/v1/models")
    time.sleep(max(0, target.until - time.monotonic()))
    return listed == "200"


@stalls("A7")
def many_tools(target: Target) -> None:
    """20,000 tools (1.3 MiB)."""
    target.repeat(chat(model="echo", tools=[tool(f"f{n}") for n in range(20_000)]))


@stalls("A8-items")
def many_system_items(target: Target) -> None:
    """200,000 system items of one letter to /v1/responses (6.9 MiB)."""
    items = [*[{"role": "system", "content": "a"}] * 200_000, LETTER]
    target.repeat({"model": "echo", "input": items, "store": False}, RESPONSES)


@stalls("A8-nesting")
def many_lists(target: Target) -> None:
    """9 MiB of empty lists in chat_template_kwargs."""
    body = json.dumps(chat(model="echo", chat_template_kwargs={"a": "HERE"})).encode()
    target.repeat(body.replace(b'"HERE"', b"[" + b"[]," * (3 * MIB) + b"[]]"))


@stalls("A8-messages")
def many_messages(target: Target) -> None:
    """200,000 messages of one letter (6.5 MiB) to a model without a tokenizer."""
    target.repeat(chat([LETTER] * 200_000, model="echo"))


@stalls("A8-answer", streams=False)  # they queue up behind it
def large_answer(target: Target) -> None:
    """64 answers of 120 tokens with 20 log-probabilities each, as one body of 11 MiB."""
    fields: dict[str, Any] = {"n": 64, "max_tokens": 120, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    target.send(CHAT, chat(temperature=1, **fields), WATCH_SECONDS)


# --- one model stops for all its clients ---


@stalls("A9")
def tokenize_long(target: Target) -> None:
    """Two clients that have 390 KiB tokenized."""
    target.repeat({"model": "pocket", "prompt": "hello world, this is " * 19_000}, "/tokenize", clients=2, pause=0)


@stalls("A9-short")
def tokenize_short(target: Target) -> None:
    """Four clients that have 12 KiB tokenized, which fit the context."""
    target.repeat({"model": "pocket", "prompt": "hello world, this is " * 600}, "/tokenize", clients=4, pause=0)


@stalls("A10-messages")
def long_conversation(target: Target) -> None:
    """20,000 messages of one letter (0.7 MiB)."""
    target.repeat(chat([LETTER] * 20_000))


@stalls("A10-special")
def control_tokens(target: Target) -> None:
    """One message of 40,000 control tokens (0.4 MiB)."""
    target.repeat(chat("<|im_end|>" * 40_000))


@stalls("A10-text")
def long_text(target: Target) -> None:
    """One message of 9 MiB of words."""
    target.repeat(chat("hello world " * (9 * MIB // 12)))


@stalls("A10-blanks")
def long_blanks(target: Target) -> None:
    """One message of 9 MiB of blanks."""
    target.repeat(chat(" " * (9 * MIB)))


@stalls("A11-embeddings")
def many_embeddings(target: Target) -> None:
    """60 texts of 3,000 tokens to /v1/embeddings, left after 1 s."""
    target.repeat({"model": "pocket", "input": [LONG] * 60}, "/v1/embeddings", seconds=1)


@stalls("A11-scores")
def many_scores(target: Target) -> None:
    """40 prompts of 3,000 tokens to be scored, left after 1 s."""
    fields = {"echo": True, "logprobs": 0, "max_tokens": 1}
    target.repeat({"model": "pocket", "prompt": [LONG] * 40} | fields, COMPLETIONS, seconds=1)


@stalls("A12-optional", runtime="openvino")
def many_optional_properties(target: Target) -> None:
    """Schemas of objects with 300 optional properties (8 KiB), each another."""
    each_another(
        target, lambda n: {"type": "object", "properties": {f"p{n}_{m}": {"type": "integer"} for m in range(300)}}
    )


@stalls("A12-union", runtime="openvino")
def wide_union(target: Target) -> None:
    """Schemas of one of 200 tagged objects (31 KiB), each another."""
    each_another(target, lambda n: union(200, f"event_{n}"))


@stalls("A12-minimums", runtime="openvino")
def many_minimums(target: Target) -> None:
    """Schemas of one of 400 whole numbers, each with a name and a minimum of its own (40 KiB), each another."""
    each_another(
        target, lambda n: {"anyOf": [record(**{f"k{n}_{m}": {"type": "integer", "minimum": m}}) for m in range(400)]}
    )


@stalls("A12-wider-union", runtime="openvino")
def wider_union(target: Target) -> None:
    """Schemas of one of 2,000 tagged objects (0.3 MiB), each another."""
    each_another(target, lambda n: union(2_000, f"event_{n}"))


@stalls("A12-alternatives")
def many_alternatives(target: Target) -> None:
    """Schemas of one of 5,000 tagged objects (0.8 MiB), each another."""
    each_another(target, lambda n: union(5_000, f"event_{n}"))


@stalls("A12-pattern")
def hard_pattern(target: Target) -> None:
    """Schemas of a pattern that repeats repetitions, each another."""
    each_another(target, lambda n: {"type": "string", "pattern": f"^((a|b){{1,{999 - n % 100}}}c){{1,999}}$"})


def each_another(target: Target, schema: Callable[[int], dict[str, Any]]) -> None:
    for number in itertools.count():
        if time.monotonic() >= target.until:
            return
        target.send(CHAT, held_to(schema(number)))
        time.sleep(PAUSE_SECONDS)


@stalls("A13", streams=False)  # they can only wait until it is noticed
def stopped_worker(target: Target) -> bool:
    """SIGSTOP of the worker, and then a plain request."""
    worker = target.served.worker()
    worker.suspend()
    try:
        return target.send(CHAT, chat(FRANCE), WATCH_SECONDS) == "200"
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.resume()


@stalls("A14")
def many_stops(target: Target) -> None:
    """100,000 stop strings (1 MiB)."""
    stop = [f"stop {n}" for n in range(100_000)]
    target.repeat(chat("Tell me a story about an owl.", stop=stop, max_tokens=200))
