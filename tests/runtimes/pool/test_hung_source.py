"""A model whose files do not answer: on a dead mount, reading them waits for ever."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import POCKET
from tests.serving import Served, serve

CLIENTS = 12  # more than any pool of threads there is by itself on two processors


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hung")
    hung = folder / "model"
    hung.mkdir()
    os.mkfifo(hung / "config.json")  # opening it waits for a writer
    (hung / "model.safetensors").symlink_to(POCKET / "model.safetensors")
    models = {"echo": {"source": "builtin:echo"}, "hung": {"source": str(hung)}}
    with serve(folder, models, load_timeout="2s") as served:
        yield served
        release(hung / "config.json")


def release(fifo: Path) -> None:
    """Lets whoever waits for a writer read nothing."""
    while True:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody waits
            return


def ask(served: Served, model: str, seconds: float, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "one two"}], **fields}
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=seconds)


def test_it_is_waited_for_no_longer_than_load_timeout(served: Served) -> None:
    refused = ask(served, "hung", 30)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_loading"
    assert refused.headers["retry-after"]


def test_clients_that_give_up_on_it_stop_no_other_model(served: Served) -> None:
    for _ in range(CLIENTS):
        with pytest.raises(httpx.ReadTimeout):
            ask(served, "hung", 0.3)
    assert httpx.get(f"{served.root}/v1/models", timeout=10).status_code == 200
    assert ask(served, "echo", 10).json()["choices"][0]["message"]["content"] == "one two"


def test_it_does_not_keep_a_server_from_ending(tmp_path: Path) -> None:
    hung = tmp_path / "model"
    hung.mkdir()
    os.mkfifo(hung / "config.json")
    (hung / "model.safetensors").symlink_to(POCKET / "model.safetensors")
    with serve(tmp_path, {"hung": {"source": str(hung)}}) as served:
        with pytest.raises(httpx.ReadTimeout):
            ask(served, "hung", 1)
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(20) in (130, 0)  # 0 where SIGINT was ignored from the start, as behind nohup
