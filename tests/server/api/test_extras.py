"""What other servers' clients send beside OpenAI's fields: honoured, or refused by name."""

import json
from typing import Any

import httpx
import pytest

from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.chat import protocol as chat
from enginehouse.server.api.completions import protocol as completions
from tests.serving import Served

HELLO = [{"role": "user", "content": "hello"}]


def job(**fields: Any) -> Any:
    return chat.to_jobs(chat.read(json.dumps({"model": "m", "messages": HELLO} | fields).encode()), "id")[0]


def text_job(**fields: Any) -> Any:
    return completions.to_jobs(completions.read(json.dumps({"model": "m", "prompt": "a"} | fields).encode()), "id")[0]


def chunks(served: Served, route: str = "/v1/chat/completions", **fields: Any) -> list[dict[str, Any]]:
    asked = {"messages": HELLO} if "chat" in route else {"prompt": "hello"}
    body = {"model": "echo", "stream": True} | asked | fields
    with httpx.stream("POST", served.root + route, json=body, timeout=60) as stream:
        assert stream.status_code == 200, stream.read()
        return [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: {")]


def test_minus_one_is_no_limit() -> None:
    assert job(max_tokens=-1, max_completion_tokens=-1, top_k=-1).sampling == job().sampling
    assert text_job(max_tokens=-1, top_k=-1).sampling.max_tokens is None
    assert job(max_tokens=-1, max_completion_tokens=7).sampling.max_tokens == 7


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "top_k"])
def test_less_than_minus_one_is_refused(field: str) -> None:
    with pytest.raises(Refused, match=">= -1") as caught:
        job(**{field: -2})
    assert caught.value.param == field


def test_repeat_penalty_is_repetition_penalty() -> None:
    assert job(repeat_penalty=1.2).sampling == job(repetition_penalty=1.2).sampling != job().sampling
    assert text_job(repeat_penalty=1.2, repetition_penalty=1.2).sampling.repetition_penalty == 1.2
    with pytest.raises(Refused) as caught:
        job(repeat_penalty=1.2, repetition_penalty=1.0)
    assert caught.value.param == "repeat_penalty"


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_every_chunk_says_what_was_used_so_far_where_that_is_asked_for(house: Served, route: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    came = chunks(house, route, stream_options=options, n=2)
    usages = [chunk["usage"] for chunk in came]
    assert all(usage["prompt_tokens"] == 5 for usage in usages)
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts[-1] == 10  # of both
    assert [usage for usage, chunk in zip(counts, came, strict=True) if finish(chunk)] == [5, 5]
    assert all(usage["total_tokens"] == 5 + count for usage, count in zip(usages, counts, strict=True))
    assert "usage" not in chunks(house, route)[-1]


def finish(chunk: dict[str, Any]) -> bool:
    return any(choice["finish_reason"] for choice in chunk["choices"])
