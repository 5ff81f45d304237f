"""The engines through the whole house: pinned, failing over, asked for what one of them lacks."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.pool import host
from enginehouse.runtimes.pool.routing import PRIOR
from tests.checkpoints import make_checkpoint
from tests.conftest import BUILT
from tests.serving import Served, serve

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOO_FEW = {"kv_tokens": 1}  # less than a context: the engine says so and does not load


def missing(*names: str) -> str | None:
    return next((reason for name in names if (reason := runtimes()[name].unavailable())), None)


def ask(served: Served, **options: Any) -> httpx.Response:
    body = {"model": "pocket", "messages": FRANCE, "temperature": 0, "max_tokens": 40} | options
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=300)


def own_cache(folder: Path, name: str) -> dict[str, str]:
    """The artifacts of the others, but failures that they hear nothing of."""
    shutil.copytree(folder / "cache" / "artifacts", folder / name / "artifacts")
    return {"ENGINEHOUSE_CACHE_DIR": str(folder / name)}


@pytest.mark.parametrize("runtime", BUILT)
def test_a_pinned_runtime_answers_the_openai_client_and_gives_its_memory_back(folder: Path, runtime: str) -> None:
    if reason := missing(runtime):
        pytest.skip(reason)
    model = {"source": "builtin:pocket", "runtime": runtime, "precision": "int8", "keep_alive": "0s"}
    with serve(folder, {"pocket": model}) as served:
        reply = served.client.with_options(timeout=300).chat.completions.with_raw_response.create(
            model="pocket", messages=FRANCE, temperature=0
        )
        assert reply.headers["x-enginehouse-runtime"] == runtime
        assert reply.parse().choices[0].message.content == "The capital of France is Paris."
        served.wait_for("unloading 'pocket'")
        psutil.wait_procs(served.children(), timeout=10)
        assert not served.children()


@pytest.mark.parametrize("runtime", BUILT)
def test_a_prompt_of_ten_thousand_tokens_needs_no_word_in_the_config_and_is_read_once(
    tmp_path: Path, runtime: str
) -> None:
    """A coding agent's, which comes again with each turn."""
    if reason := missing(runtime):
        pytest.skip(reason)
    source = make_checkpoint(tmp_path / "long", max_position_embeddings=40_960)
    prompt = [3 + at * at % 101 for at in range(10_000)]
    with serve(tmp_path, {"long": {"source": str(source), "runtime": runtime, "precision": "16bit"}}) as served:
        client = served.client.with_options(timeout=300)
        for turn in (prompt, [*prompt, 5, 6, 7]):
            usage = client.completions.create(model="long", prompt=turn, max_tokens=2, temperature=0).usage
            assert usage and usage.prompt_tokens == len(turn) and usage.prompt_tokens_details
            cached = usage.prompt_tokens_details.cached_tokens or 0
        assert cached > 9_000
        status = httpx.get(f"{served.root}/v1/models/long").json()["status"]
        assert status["context_length"] == 40_960
        assert status["kv_bytes_per_token"] > 0


# --- one engine broken on purpose ---


@pytest.fixture(scope="module")
def order() -> list[str]:
    """The prior of this host, of engines that serve the pocket model in 8 bits."""
    if reason := missing("llamacpp", "openvino", "onnx"):
        pytest.skip(reason)
    machine = asyncio.run(host.discover(runtimes()))
    return [name for name in PRIOR[machine.kind] if missing(name) is None]


def test_a_candidate_that_cannot_load_is_passed_over_within_the_request_and_explained(
    folder: Path, order: list[str]
) -> None:
    model = {"source": "builtin:pocket", "precision": "int8", "options": {order[0]: TOO_FEW}}
    with serve(folder, {"pocket": model}, own_cache(folder, "limping")) as served:
        reply = ask(served)
        assert reply.status_code == 200
        assert reply.headers["x-enginehouse-runtime"] == order[1]
        explained = httpx.get(f"{served.root}/v1/models/pocket/explain").json()
        (broken,) = [rejected for rejected in explained["rejected"] if rejected["runtime"] == order[0]]
        assert "parked until" in broken["reason"]
        assert "kv_tokens 1 is less than the context" in broken["reason"]


def test_a_field_that_the_chosen_engine_lacks_takes_the_request_to_one_that_has_it(
    folder: Path, order: list[str]
) -> None:
    """Without llama.cpp, OpenVINO is the first of every prior; it honours no logit_bias."""
    model = {"source": "builtin:pocket", "precision": "int8", "options": {"llamacpp": TOO_FEW}}
    assert "logit_bias" not in runtimes()["openvino"].features
    with serve(folder, {"pocket": model}, own_cache(folder, "detour")) as served:
        assert ask(served).headers["x-enginehouse-runtime"] == "openvino"
        assert ask(served, logit_bias={"1": -5}).headers["x-enginehouse-runtime"] == "onnx"
        assert 'enginehouse_detours_total{model_name="pocket"} 1.0' in httpx.get(f"{served.root}/metrics").text


def test_strict_refuses_the_detour_and_names_who_would_serve_it(folder: Path) -> None:
    if reason := missing("openvino", "onnx"):
        pytest.skip(reason)
    model = {"source": "builtin:pocket", "precision": "int8", "runtime": "openvino"}
    with serve(folder, {"pocket": model}) as served:
        error = ask(served, logit_bias={"1": -5}).json()["error"]
        assert error["param"] == "logit_bias"
        assert "openvino" in error["message"]


# --- chosen by measurement ---


def test_bench_measures_every_candidate_and_the_best_of_them_serves(folder: Path, tmp_path: Path) -> None:
    if reason := missing("llamacpp", "onnx"):
        pytest.skip(reason)
    config = tmp_path / "enginehouse.yaml"
    model = {"source": "builtin:pocket", "precision": "int8", "slots": 2}
    config.write_text(
        json.dumps(
            {"models": {"pocket": model}, "cache_dir": str(folder / "cache"), "routing": {"measure": "on-demand"}}
        )
    )
    command = [
        sys.executable,
        "-m",
        "enginehouse.server.cli.main",
        "bench",
        "pocket",
        "--config",
        str(config),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=600, check=True)
    (explained,) = json.loads(done.stdout)["explained"]
    costs = {row["key"]: row["cost"] for row in explained["candidates"]}
    assert len(costs) >= 2
    assert all(cost > 0 for cost in costs.values())
    assert explained["chosen"] == min(costs, key=lambda key: costs[key])
    with serve(folder, {"pocket": model}, routing={"measure": "on-demand"}) as served:
        assert ask(served).headers["x-enginehouse-runtime"] == explained["chosen"].split("/")[0]
        again = httpx.get(f"{served.root}/v1/models/pocket/explain").json()
        assert again["chosen"] == explained["chosen"]
        assert "measured on this host: balanced cost" in again["reason"]


def test_untried_candidates_are_measured_when_nobody_asks_and_that_yields_to_a_request(folder: Path) -> None:
    if reason := missing("llamacpp", "onnx"):
        pytest.skip(reason)
    model = {"source": "builtin:pocket", "precision": "int8", "slots": 3}
    with serve(folder, {"pocket": model}, routing={"measure": "idle"}) as served:
        expected = ask(served).json()["choices"]
        served.wait_for("while nobody asks")
        assert ask(served).json()["choices"] == expected
        served.wait_for("ends: a request came")
        served.wait_for("measured 'pocket' on")
        rows = httpx.get(f"{served.root}/v1/models/pocket/explain").json()["candidates"]
        assert any(row["figures"] for row in rows)


# --- hard constraints ---


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def integers(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"property_{n}": {"type": "integer"} for n in range(count)}}


HARD: tuple[dict[str, Any], ...] = (
    integers(100),
    integers(300),
    {"anyOf": [record(kind={"const": f"event_{n}"}, value={"type": "integer"}) for n in range(200)]},
    {"anyOf": [record(**{f"k_{n}": {"type": "integer", "minimum": n}}) for n in range(400)]},
    {"type": "string", "pattern": "^((a|b){1,999}c){1,999}$"},
)


@pytest.mark.parametrize("runtime", BUILT)
def test_a_schema_that_is_hard_to_enforce_ends_no_worker_and_no_answer(folder: Path, runtime: str) -> None:
    if reason := missing(runtime):
        pytest.skip(reason)
    model = {"source": "builtin:pocket", "runtime": runtime, "precision": "int8"}
    with serve(folder, {"pocket": model}) as served, ThreadPoolExecutor(1) as thread:
        assert ask(served).status_code == 200
        worker = served.worker().pid
        other = thread.submit(ask, served, max_tokens=500, ignore_eos=True)
        for schema in HARD:
            form = {"type": "json_schema", "json_schema": {"name": "hard", "schema": schema}}
            reply = ask(served, response_format=form, max_tokens=5)
            assert reply.status_code == 200 or reply.json()["error"]["code"] == "invalid_constraint", reply.text
        assert other.result().json()["usage"]["completion_tokens"] == 500
        assert served.worker().pid == worker
        children = served.children()
    assert not psutil.wait_procs(children, timeout=10)[1]
