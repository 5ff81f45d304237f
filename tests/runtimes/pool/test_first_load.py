"""A model's first request: answered at once where that is possible, told how far it is where not."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.serving import Served, serve

pytest.importorskip("openvino_genai")  # its build takes long enough for something to happen meanwhile
pytest.importorskip("torch")
CAPITAL: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
STORY: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]
BROKEN = {"openvino": {"kv_tokens": 1}, "onnx": {"kv_tokens": 1}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = {
        "pocket": {"source": "builtin:pocket"},
        "stuck": {"source": "builtin:pocket", "options": BROKEN},
    }
    with serve(tmp_path_factory.mktemp("first"), models, optimize={"first_load": "serve-now"}) as served:
        yield served


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = {"pocket": {"source": "builtin:pocket", "runtime": "openvino", "precision": "int8"}}
    with serve(tmp_path_factory.mktemp("wait"), models, load_timeout="1s") as served:
        yield served


def status(served: Served, model: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.root}/v1/models/{model}").json()["status"]
    return found


def ask(served: Served, model: str) -> tuple[str, str]:
    """Who answered, and what."""
    reply = served.client.chat.completions.with_raw_response.create(model=model, messages=CAPITAL, temperature=0)
    headers = reply.headers
    who = f"{headers['x-enginehouse-runtime']} {headers['x-enginehouse-precision']}"
    return who, reply.parse().choices[0].message.content or ""


def test_the_first_answer_comes_from_what_is_quickest_and_streams_run_on_through_the_change(served: Served) -> None:
    assert ask(served, "pocket") == ("llamacpp BF16", "The capital of France is Paris.")
    assert status(served, "pocket")["better"].keys() >= {"stage", "percent"}

    def stories(_: int) -> set[str]:
        """Asks for one story after another until another engine tells them."""
        told, who = set(), "llamacpp"
        while who == "llamacpp":
            with served.client.chat.completions.with_streaming_response.create(
                model="pocket", messages=STORY, temperature=0, stream=True
            ) as reply:
                who = reply.headers["x-enginehouse-runtime"]
                chunks: Any = reply.parse()
                told.add("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
        return told

    with ThreadPoolExecutor(4) as threads:
        told = set().union(*threads.map(stories, range(4)))
    assert all(story.endswith("The end.") for story in told)
    served.wait_for("'pocket' is served by openvino/cpu/INT4")
    served.wait_for("unloading 'pocket'")
    assert len(served.children()) == 1
    assert ask(served, "pocket")[1] == "The capital of France is Paris."
    assert status(served, "pocket")["runtime"] == "openvino"


def test_a_plain_request_is_sent_away_after_the_time_it_may_wait_and_what_it_asked_for_is_made(
    impatient: Served,
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        ask(impatient, "pocket")
    assert (refused.value.status_code, refused.value.code) == (503, "model_loading")
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert status(impatient, "pocket")["state"] == "loading"

    body = {"model": "pocket", "messages": CAPITAL, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{impatient.root}/v1/chat/completions", json=body, timeout=120) as reply:
        lines = [line for line in reply.iter_lines() if line]
    comments = [line for line in lines if line.startswith(": ")]
    assert any("convert" in line for line in comments), comments
    assert {": x-enginehouse-runtime: openvino", ": x-enginehouse-precision: INT8_ASYM"} <= set(comments)
    assert lines[-1] == "data: [DONE]"
    assert "Paris" in "".join(lines)
    assert ask(impatient, "pocket") == ("openvino INT8_ASYM", "The capital of France is Paris.")


def test_where_nothing_better_can_be_had_the_stand_in_goes_on(served: Served) -> None:
    assert ask(served, "stuck")[0] == "llamacpp BF16"
    served.wait_for("'stuck' is served by llamacpp/cpu/Q4_K_M")
    assert ask(served, "stuck") == ("llamacpp Q4_K_M", "The capital of France is Paris.")
