"""Batches for tests: a file of lines, handed in through the openai package, and what came of it."""

import json
import time
from collections.abc import Iterable
from typing import Any

import httpx
import openai

from tests.serving import Served

SECONDS = 60
CHAT = "/v1/chat/completions"


def line(id: str, text: str, model: str = "echo", url: str = CHAT, **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}]} | fields
    return {"custom_id": id, "method": "POST", "url": url, "body": body}


def jsonl(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def hand_in(
    client: openai.OpenAI, content: bytes, endpoint: Any = CHAT, window: Any = "24h", **options: Any
) -> openai.types.Batch:
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window, **options)


def until(client: openai.OpenAI, id: str, *statuses: str) -> openai.types.Batch:
    deadline = time.monotonic() + SECONDS
    while (batch := client.batches.retrieve(id)).status not in statuses:
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def ended(client: openai.OpenAI, id: str) -> openai.types.Batch:
    return until(client, id, "completed", "failed", "expired", "cancelled")


def with_answers(client: openai.OpenAI, id: str, least: int) -> openai.types.Batch:
    """Once so many of its lines are answered."""
    deadline = time.monotonic() + SECONDS
    while (counts := (batch := client.batches.retrieve(id)).request_counts) is None or counts.completed < least:
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def rows(client: openai.OpenAI, file: str | None) -> list[dict[str, Any]]:
    return [json.loads(one) for one in client.files.content(file).text.splitlines()] if file else []


def said(row: dict[str, Any]) -> str:
    text: str = row["response"]["body"]["choices"][0]["message"]["content"]
    return text


def metric(served: Served, name: str, model: str, key: str = "none") -> float:
    lines = httpx.get(f"{served.root}/metrics", headers={"x-api-key": key}).text.splitlines()
    return next(
        float(one.split()[-1]) for one in lines if one.startswith(f'enginehouse_{name}{{model_name="{model}"}}')
    )
