"""A real server that is not ours as an upstream: two replicas of llama-cpp-python's own, with our pocket model."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anthropic
import httpx
import psutil
import pytest

from tests.serving import Served, free_port, serve

SECONDS = 60
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


class Replica:
    def __init__(self, model: str) -> None:
        port = free_port()
        command = [sys.executable, "-m", "llama_cpp.server", "--model", model, "--model_alias", "pocket"]
        # unless told otherwise it cuts an answer short for the next request
        options = ["--n_ctx", "2048", "--interrupt_requests", "False", "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}/v1"
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait(self) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                httpx.get(f"{self.url}/models").raise_for_status()
                return
            except httpx.HTTPError:
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)

    @property
    def seconds(self) -> float:
        """That it has computed."""
        return float(sum(psutil.Process(self.process.pid).cpu_times()[:2]))


@contextmanager
def replica(model: str) -> Iterator[Replica]:
    one = Replica(model)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()


@pytest.fixture(scope="module")
def replicas(house: Served) -> Iterator[list[Replica]]:
    pytest.importorskip("llama_cpp")
    house.client.chat.completions.create(model="pocket-f32", messages=QUESTION, max_tokens=1)  # type: ignore[arg-type]
    model = next(iter((house.cache / "artifacts").glob("gguf-F32-*/*.gguf")))
    with ExitStack() as stack:
        both = [stack.enter_context(replica(str(model))) for _ in range(2)]
        for one in both:
            one.wait()
        yield both


@pytest.fixture(scope="module")
def front(replicas: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    upstream = {"base_urls": [one.url for one in replicas], "model": "pocket", "parser": "generic"}
    with serve(tmp_path_factory.mktemp("front"), {"pocket": {"runtime": "upstream", "upstream": upstream}}) as served:
        yield served


def test_it_answers_in_every_dialect(front: Served) -> None:
    options: Any = {"model": "pocket", "messages": QUESTION, "temperature": 0}
    reply = front.client.chat.completions.create(**options)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (ANSWER, "stop")
    chunks = front.client.chat.completions.create(stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    answer = front.client.responses.create(model="pocket", input=QUESTION[0]["content"], temperature=0)
    assert answer.output_text == ANSWER
    untempered: Any = {"model": "pocket", "messages": QUESTION}
    client = anthropic.Anthropic(base_url=front.root, api_key="none", max_retries=0)
    message: Any = client.messages.create(max_tokens=50, extra_body={"temperature": 0}, **untempered)
    assert message.content[0].text == ANSWER


def test_when_one_dies_the_other_answers_all(front: Served, replicas: list[Replica]) -> None:
    before = [one.seconds for one in replicas]
    for number in range(4):
        text = f"{QUESTION[0]['content']}{' ' * number}"
        front.client.chat.completions.create(
            model="pocket", messages=[{"role": "user", "content": text}], max_tokens=20
        )
    assert all(one.seconds > then for one, then in zip(replicas, before, strict=True))
    replicas[0].process.kill()
    replicas[0].process.wait()
    for _ in range(4):
        options: Any = {"model": "pocket", "messages": QUESTION, "temperature": 0}
        assert front.client.chat.completions.create(**options).choices[0].message.content == ANSWER
