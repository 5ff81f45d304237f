"""What clients see when something breaks, and what is left behind."""

import contextlib
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.serving import Served, serve

COUNT: list[Any] = [{"role": "user", "content": "Count from 1 to 20"}]
POCKET = {"pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "slots": 1}}
ENDLESS = {"ignore_eos": True}


def stream(served: Served, max_tokens: int = 3000, temperature: float = 0) -> Any:
    return served.client.chat.completions.create(
        model="pocket", messages=COUNT, temperature=temperature, max_tokens=max_tokens, stream=True, extra_body=ENDLESS
    )


def ask(served: Served) -> str:
    reply = served.client.chat.completions.create(model="pocket", messages=COUNT, temperature=0)
    return str(reply.choices[0].message.content)


def test_a_greedy_stream_goes_on_when_its_worker_is_killed_as_if_nothing_had_happened(folder: Path) -> None:
    exact = {"llamacpp": {"kv_precision": "f32", "flash_attention": "off"}}
    model = POCKET["pocket"] | {"precision": "f32", "options": exact}
    with serve(folder, {"pocket": model}) as served:
        whole = "".join(chunk.choices[0].delta.content or "" for chunk in stream(served, 400))
        chunks = iter(stream(served, 400))
        parts = [next(chunks).choices[0].delta.content or "" for _ in range(40)]
        served.worker().kill()
        ends = []
        for chunk in chunks:
            parts.append(chunk.choices[0].delta.content or "")
            ends.append(chunk.choices[0].finish_reason)
        assert "".join(parts) == whole
        assert ends[-1] == "length"
        served.wait_for("going on after")
        assert 'enginehouse_continuations_total{model_name="pocket"} 1.0' in httpx.get(f"{served.root}/metrics").text


def test_a_random_streams_worker_killed_ends_it_with_an_error_and_the_next_request_is_answered(folder: Path) -> None:
    with serve(folder, POCKET) as served:
        chunks = iter(stream(served, temperature=1))
        next(chunks)
        first = next(chunks)
        served.worker().kill()
        with pytest.raises(openai.APIError, match="killed by SIGKILL"):
            for _ in chunks:
                pass
        assert first.choices[0].delta.content
        assert "20" in ask(served)


def test_a_request_whose_worker_dies_before_its_first_token_is_answered_by_another(folder: Path) -> None:
    with serve(folder, POCKET) as served:
        expected = ask(served)
        worker = served.worker()
        worker.suspend()
        answers: list[str] = []
        asking = threading.Thread(target=lambda: answers.append(ask(served)))
        asking.start()
        worker.kill()
        asking.join(60)
        assert answers == [expected]


def read_of(lines: Iterator[str]) -> tuple[list[str], str]:
    """What a client makes of a stream: the kinds of its events, each once where several follow, and its text."""
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    kinds = [one.get("type", "chunk") for one in events if one.get("type") != "ping"]
    deltas = [one.get("delta") or one.get("choices", [{}])[0].get("delta") or {} for one in events]
    text = "".join(delta.get("text") or delta.get("content") or "" for delta in deltas)
    return [kind for kind, _ in itertools.groupby(kinds)], text


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages"])
def test_a_worker_that_dies_while_it_reads_an_admitted_prompt_costs_its_client_nothing(
    tmp_path: Path, route: str, temperature: int
) -> None:
    slow = {"source": "builtin:echo", "context": 9000, "options": {"echo": {"prefill_rate": 4000}}}
    messages = [{"role": "user", "content": "a" * 4000}]
    body = {"model": "slow", "messages": messages, "max_tokens": 5, "temperature": temperature, "stream": True}
    with serve(tmp_path, {"slow": slow}) as served, httpx.Client(base_url=served.root, timeout=60) as client:
        with client.stream("POST", route, json=body) as undisturbed:
            expected = read_of(undisturbed.iter_lines())
        with client.stream("POST", route, json=body) as stream:
            assert stream.headers["x-enginehouse-runtime"] == "echo"  # it is admitted
            served.worker().kill()
            lines = list(stream.iter_lines())
        assert read_of(iter(lines)) == expected
        assert ": its engine died; another goes on" in lines
        served.wait_for("running the request again")


def test_a_plain_request_runs_again_from_the_start_when_its_worker_is_killed(folder: Path) -> None:
    """Its client has seen nothing yet, so it may be random."""
    with serve(folder, POCKET) as served:
        ask(served)
        body = {"model": "pocket", "messages": COUNT, "max_tokens": 2000, "ignore_eos": True}
        replies: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: replies.append(httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=120))
        )
        worker = served.worker()
        idle = worker.cpu_times().user
        asking.start()
        while worker.cpu_times().user < idle + 0.1:
            pass
        worker.kill()
        asking.join(120)
        assert replies[0].status_code == 200
        assert replies[0].json()["usage"]["completion_tokens"] == 2000
        served.wait_for("running the request again")


def test_a_request_that_kills_its_engine_costs_nobody_else_an_answer(folder: Path) -> None:
    """Seven good requests beside one that the engine dies of, whenever it runs."""
    echo = {"source": "builtin:echo", "options": {"echo": {"fails_on": "POISON"}}}
    with serve(folder, {"echo": echo}) as served:

        def say(text: str) -> httpx.Response:
            body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
            return httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=120)

        with ThreadPoolExecutor(8) as threads:
            texts = [f"{n} " * 2000 for n in range(7)]
            poison, *good = threads.map(say, ["POISON", *texts])
        assert [reply.json()["choices"][0]["message"]["content"] for reply in good] == texts
        assert poison.status_code == 500
        assert "fails_on came up" in poison.json()["error"]["message"]
        assert say("well again").status_code == 200


def test_nothing_outlives_a_killed_server(folder: Path) -> None:
    with serve(folder, POCKET) as served:
        chunks = iter(stream(served))
        next(chunks)
        children = served.children()
        assert children
        served.process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_a_client_that_hangs_up_frees_its_slot(folder: Path) -> None:
    """One slot: the second request can only be answered once the first has left it, and the first never ends."""
    with serve(folder, POCKET) as served:
        chunks = stream(served)
        gone = next(iter(chunks)).id
        chunks.close()
        assert "20" in ask(served)
        with pytest.raises(httpx.ReadTimeout):
            body = {"model": "pocket", "messages": COUNT, "max_tokens": 4000, "ignore_eos": True}
            httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=0.3)
        assert "20" in ask(served)
        served.wait_for("prompt (")
        assert not any(gone in line for line in served.log)


def test_beyond_the_queue_requests_are_told_to_come_back(folder: Path) -> None:
    with serve(folder, POCKET, max_queue=1) as served:
        ask(served)
        held = [stream(served), stream_in_queue(served)]
        with pytest.raises(openai.RateLimitError) as caught:
            ask(served)
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) > 0
        for one in held:
            one.close()


def stream_in_queue(served: Served) -> Any:
    """A request that waits for the only slot, known to wait because the server has read it."""
    sent = httpx.Client(timeout=120)
    body = {"model": "pocket", "messages": COUNT, "stream": True}
    request = sent.build_request("POST", f"{served.root}/v1/chat/completions", json=body)
    waiting = threading.Thread(target=lambda: quietly(sent, request), daemon=True)
    waiting.start()
    while httpx.get(f"{served.root}/v1/models/pocket").json()["status"]["requests"] < 2:
        pass
    return sent


def quietly(client: httpx.Client, request: httpx.Request) -> None:
    with contextlib.suppress(httpx.HTTPError, RuntimeError):
        client.send(request)


def test_an_idle_model_is_unloaded_and_comes_back(folder: Path) -> None:
    with serve(folder, {"pocket": POCKET["pocket"] | {"keep_alive": "0s"}}) as served:
        expected = ask(served)
        served.wait_for("unloading 'pocket'")
        psutil.wait_procs(served.children(), timeout=10)
        assert not served.children()
        assert ask(served) == expected


def test_a_stop_signal_ends_streams_and_the_server(folder: Path) -> None:
    with serve(folder, POCKET) as served:
        chunks = iter(stream(served))
        next(chunks)
        children = served.children()
        os.kill(served.process.pid, signal.SIGTERM)
        assert served.process.wait(timeout=20) is not None
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


# --- models that cannot be served: the server says why and lives ---


def unservable(folder: Path, served: Served, model: str) -> str:
    with pytest.raises(openai.InternalServerError) as caught:
        served.client.chat.completions.create(model=model, messages=COUNT)
    assert caught.value.status_code == 503
    assert httpx.get(f"{served.root}/health").status_code == 200
    assert not list(folder.glob("cache/artifacts/.building-*"))
    return caught.value.message


def test_a_model_that_cannot_be_loaded_is_explained_in_one_sentence(tmp_path: Path, checkpoint: Path) -> None:
    truncated = copy(checkpoint, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    alien = copy(checkpoint, tmp_path / "alien")
    (alien / "config.json").write_text(
        (alien / "config.json").read_text().replace("Qwen3ForCausalLM", "FromNextYearForCausalLM")
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "text.gguf").write_bytes(b"hello")
    models: dict[str, tuple[dict[str, Any], str]] = {
        "missing": ({"source": str(tmp_path / "nowhere")}, "does not exist"),
        "empty": ({"source": str(empty)}, "no config.json"),
        "truncated": ({"source": str(truncated)}, "model.safetensors"),
        "alien": ({"source": str(alien)}, "FromNextYearForCausalLM"),
        "broken": ({"source": str(tmp_path / "broken.gguf")}, "truncated"),
        "text": ({"source": str(tmp_path / "text.gguf")}, "not a gguf"),
        "precision": ({"source": str(checkpoint), "precision": "int3"}, "unknown precision 'int3'; have: auto"),
        "context": ({"source": str(checkpoint), "context": 100_000}, "more than the"),
    }
    pinned = {"runtime": "llamacpp"}  # or each of the others would try
    with serve(tmp_path, {name: pinned | model for name, (model, _) in models.items()}) as served:
        for name, (_, words) in models.items():
            message = unservable(tmp_path, served, name)
            assert words in message, name
            assert f"model '{name}'" in message


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with serve(tmp_path, {"tiny": {"source": str(checkpoint), "runtime": "llamacpp"}}) as served:
        message = unservable(tmp_path / "elsewhere", served, "tiny")
        assert "cannot be written" in message
        assert "cache_dir" in message


def test_a_full_disk_ends_the_build_with_a_sentence_and_leaves_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """The limit on a file's size stands in for the disk's: the write fails in the middle, as on a full one."""
    with serve(tmp_path, {"tiny": {"source": str(checkpoint), "runtime": "llamacpp"}}) as served:
        psutil.Process(served.process.pid).rlimit(psutil.RLIMIT_FSIZE, (20_000, psutil.RLIM_INFINITY))
        assert "no room on the disk" in unservable(tmp_path, served, "tiny")
        psutil.Process(served.process.pid).rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        served.client.chat.completions.create(model="tiny", messages=COUNT, max_tokens=2)


def copy(folder: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(folder, to)
    return to
