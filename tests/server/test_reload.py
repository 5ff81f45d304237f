"""A config that changes while the server runs: applied without dropping a request, or refused with the old one kept."""

import json
import os
import pty
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import enginehouse.config
from tests.serving import COMMAND, Served, free_port, serve

SECONDS = 60
ECHO: dict[str, Any] = {"source": "builtin:echo", "context": 1_000_000}
ADMIN = {"authorization": "Bearer root"}


def config_of(served: Served) -> Path:
    return next(served.cache.parent.glob("config-*.yaml"))


def change(served: Served, edit: Callable[[dict[str, Any]], None]) -> list[str]:
    """Writes the config anew, as an editor does, and waits until it was read; what the log says of it."""
    file = config_of(served)
    config = json.loads(file.read_text())
    edit(config)
    written = file.with_suffix(".new")
    written.write_text(json.dumps(config))
    before = len(served.log)
    written.rename(file)
    served.wait_for("the config was read again", SECONDS)
    return served.log[before:]


def ask(served: Served, model: str, text: str = "hi", **headers: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, headers=headers, timeout=SECONDS)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(tmp_path, {"echo": ECHO}, admin_keys=["root"]) as served:
        yield served


def test_models_come_and_go_and_are_called_otherwise(served: Served) -> None:
    assert ask(served, "echo").status_code == 200

    def edit(config: dict[str, Any]) -> None:
        config["models"] = {"other": ECHO | {"aliases": ["gpt-4o"]}}

    log = "".join(change(served, edit))
    assert "models.echo is gone" in log
    assert "models.other is new" in log
    assert [one.id for one in served.client.models.list()] == ["other"]
    assert ask(served, "echo").status_code == 404
    assert ask(served, "gpt-4o").json()["choices"][0]["message"]["content"] == "hi"
    served.wait_for("unloading 'echo'", SECONDS)


def test_what_else_changes_in_the_configs_folder_is_not_logged(served: Served) -> None:
    """A log that lies there would be written for having been written, ten times a second."""
    change(served, lambda config: config["models"].update(other=ECHO))  # from here on it is watched
    (config_of(served).parent / "serve.log").write_text("a line")
    change(served, lambda config: config["models"].update(third=ECHO))
    assert not [line for line in served.log if "watchfiles" in line]


def test_the_log_changes_its_form(served: Served) -> None:
    change(served, lambda config: config["server"].update(log_format="json"))
    assert ask(served, "echo").status_code == 200
    assert json.loads(served.wait_for("tokens, stop", SECONDS))["request_id"].startswith("req_")


def test_a_stream_goes_on_through_a_reload_of_its_own_model(served: Served) -> None:
    change(served, lambda config: config["models"]["echo"].update(options={"echo": {"prefill_rate": 1000}}))
    text, received = "a" * 4000, []

    def read() -> None:
        stream = served.client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": text}], stream=True
        )
        for chunk in stream:
            received.append(chunk.choices[0].delta.content or "")

    reading = threading.Thread(target=read)
    reading.start()
    served.wait_for("loaded 'echo'", SECONDS)
    before = served.worker()
    log = change(served, lambda config: config["models"]["echo"].update(slots=2, options={}))
    assert any("models.echo.slots was 8, is 2" in line for line in log)
    assert ask(served, "echo").status_code == 200
    served.wait_for("is served by", SECONDS)
    status = httpx.get(f"{served.root}/v1/models/echo").json()["status"]
    assert (status["state"], status["slots"]) == ("loaded", 2)
    reading.join(SECONDS)
    assert "".join(received) == text
    served.wait_for("unloading 'echo'", SECONDS)
    before.wait(SECONDS)
    assert sum("enginehouse.runtimes.worker" in child.cmdline() for child in served.children()) == 1


def test_another_precision_under_load_drops_no_request(tmp_path: Path) -> None:
    pocket = {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "Q8_0"}
    with serve(tmp_path, {"pocket": pocket}) as served:
        assert ask(served, "pocket").status_code == 200
        statuses: list[tuple[int, str]] = []
        over = threading.Event()

        def go_on() -> None:
            while not over.is_set():
                reply = ask(served, "pocket")
                statuses.append((reply.status_code, reply.headers.get("x-enginehouse-precision", reply.text)))

        threads = [threading.Thread(target=go_on) for _ in range(3)]
        for thread in threads:
            thread.start()
        change(served, lambda config: config["models"]["pocket"].update(precision="f16"))
        served.wait_for("is served by llamacpp/cpu/F16", SECONDS)
        assert ask(served, "pocket").headers["x-enginehouse-precision"] == "F16"
        over.set()
        for thread in threads:
            thread.join(SECONDS)
        assert {status for status, _ in statuses} == {200}, statuses


@pytest.mark.parametrize(
    "nonsense",
    ["", "models: [", "models: {}", "server: {prot: 1}\nmodels: {a: {source: 'builtin:echo'}}", "\x00\xff"],
    ids=["empty", "no YAML", "no models", "unknown key", "no text"],
)
def test_nonsense_is_refused_and_the_old_config_stays(served: Served, nonsense: str) -> None:
    file = config_of(served)
    good = file.read_text()
    file.write_bytes(nonsense.encode("latin-1"))
    assert str(file) in served.wait_for("the new config is refused, and the old one stays", SECONDS)
    assert ask(served, "echo").status_code == 200
    health = httpx.get(f"{served.root}/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert "refused" in health.json()["config"]
    file.write_text(good)
    served.wait_for("the config was read again; 0 changes", SECONDS)
    assert httpx.get(f"{served.root}/health").json() == {"status": "ok"}


def test_what_cannot_change_while_it_runs_is_named(served: Served) -> None:
    port = free_port()

    def edit(config: dict[str, Any]) -> None:
        config["server"]["port"] = port
        config["cache_dir"] = "/nowhere"
        config["server"]["max_queue"] = 7

    log = "".join(change(served, edit))
    assert f"is {port}; that needs a restart" in log
    assert 'is "/nowhere"; that needs a restart' in log
    assert "server.max_queue was 256, is 7\n" in log
    assert ask(served, "echo").status_code == 200


def test_sighup_reads_it_again_and_keys_and_origins_change_too(served: Served) -> None:
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("the config was read again; 0 changes", SECONDS)
    secret = "squirrel"

    def edit(config: dict[str, Any]) -> None:
        config["server"] |= {"api_keys": [secret], "cors_origins": ["https://chat.example"]}

    log = change(served, edit)
    assert any("server.api_keys changed; 0 keys before, 1 now" in line for line in log)
    assert not any(secret in line for line in served.log)
    assert ask(served, "echo").status_code == 401
    reply = ask(served, "echo", authorization=f"Bearer {secret}", origin="https://chat.example")
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "https://chat.example"


def test_a_model_that_cannot_be_loaded_as_it_is_now_goes_on_as_it_was(served: Served) -> None:
    assert ask(served, "echo").status_code == 200
    change(served, lambda config: config["models"]["echo"].update(source="/nowhere/at/all"))
    served.wait_for("goes on with what stands in", SECONDS)
    assert ask(served, "echo").status_code == 200
    change(served, lambda config: config["models"]["echo"].update(source="builtin:echo", slots=3))
    served.wait_for("is served by", SECONDS)
    assert ask(served, "echo").status_code == 200


def test_who_waits_for_a_model_gets_it_as_it_is_configured_now(tmp_path: Path) -> None:
    """Its source is on a disk that does not answer."""
    hung = tmp_path / "hung"
    hung.mkdir()
    os.mkfifo(hung / "config.json")
    (hung / "model.safetensors").write_bytes(b"")
    with serve(tmp_path, {"model": {"source": str(hung)}}) as served:
        replies: list[httpx.Response] = []
        waiting = threading.Thread(target=lambda: replies.append(ask(served, "model")))
        waiting.start()
        while 'under_way{model_name="model"} 1.0' not in httpx.get(f"{served.root}/metrics").text:
            time.sleep(0.02)
        change(served, lambda config: config["models"].update(model=ECHO))
        waiting.join(SECONDS)
        assert [(reply.status_code, reply.json()["choices"][0]["message"]["content"]) for reply in replies] == [
            (200, "hi")
        ]
        (hung / "config.json").write_text("{}")  # so that the thread that reads it ends


def test_a_preloaded_model_has_answered_before_the_server_is_ready(tmp_path: Path) -> None:
    missing = tmp_path / "later"
    models = {"echo": ECHO | {"preload": True}, "broken": {"source": str(missing), "preload": True}}
    with serve(tmp_path, models) as served:
        served.wait_for("'broken' cannot be preloaded", SECONDS)
        ready = httpx.get(f"{served.root}/ready")
        assert ready.status_code == 503
        assert "preloading: " in ready.json()["error"]["message"]
        assert "'broken' failed: " in ready.json()["error"]["message"]
        change(served, lambda config: config["models"].pop("broken"))
        served.wait_for("ready", SECONDS)
        assert httpx.get(f"{served.root}/ready").status_code == 200
        metrics = httpx.get(f"{served.root}/metrics").text
        assert 'loads_total{model_name="echo"} 1.0' in metrics
        assert 'generation_tokens_total{model_name="echo",runtime="echo"} 1.0' in metrics


def test_a_preloaded_model_that_can_no_longer_be_had_is_not_ready_until_it_answers_again(tmp_path: Path) -> None:
    source, away = tmp_path / "pocket", tmp_path / "away"
    shutil.copytree(Path(enginehouse.config.__file__).parent / "pocket", source)
    model = {"source": str(source), "runtime": "llamacpp", "precision": "Q8_0", "preload": True}
    with serve(tmp_path, {"pocket": model}) as served:
        served.wait_for("INFO enginehouse.server: ready", 2 * SECONDS)
        source.rename(away)
        worker = served.worker()
        worker.kill()
        worker.wait(SECONDS)
        assert ask(served, "pocket").status_code == 503
        ready = httpx.get(f"{served.root}/ready")
        assert (ready.status_code, "'pocket'" in ready.json()["error"]["message"]) == (503, True)
        away.rename(source)
        change(
            served, lambda config: config["models"]["pocket"].update(keep_alive="20m")
        )  # at once, not in half a minute
        until = time.monotonic() + SECONDS
        while httpx.get(f"{served.root}/ready").status_code != 200:
            assert time.monotonic() < until
        assert ask(served, "pocket").status_code == 200


def test_operators_load_unload_and_delete(tmp_path: Path) -> None:
    models = {"a/pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "Q8_0"}}
    with serve(tmp_path, models, admin_keys=["root"], api_keys=["user"]) as served:
        at = f"{served.root}/v1/models/a/pocket"
        for headers, status in (({}, 401), ({"x-api-key": "user"}, 403)):
            assert httpx.post(f"{at}/load", headers=headers).status_code == status
            assert httpx.delete(f"{at}/artifacts", headers=headers).status_code == status
        loaded = httpx.post(f"{at}/load", headers=ADMIN, timeout=SECONDS).json()
        assert (loaded["id"], loaded["status"]["state"]) == ("a/pocket", "loaded")
        held = httpx.delete(f"{at}/artifacts", headers=ADMIN, timeout=SECONDS).json()
        assert (held["deleted"], len(held["in_use"]), held["bytes"]) == ([], 1, 0)
        assert httpx.post(f"{at}/unload", headers=ADMIN).status_code == 200
        served.wait_for("unloading 'a/pocket'", SECONDS)
        while httpx.get(at, headers=ADMIN).json()["status"]["state"] != "unloaded":
            time.sleep(0.02)
        worker_gone = time.monotonic() + SECONDS
        while not (gone := httpx.delete(f"{at}/artifacts", headers=ADMIN, timeout=SECONDS).json())["deleted"]:
            assert time.monotonic() < worker_gone, gone
        assert gone["deleted"] == held["in_use"]
        assert gone["bytes"] > 1_000_000
        assert httpx.post(f"{at}/nothing", headers=ADMIN).status_code == 404
        assert httpx.post(f"{served.root}/v1/models/other/load", headers=ADMIN).status_code == 404


def test_a_terminal_that_closes_ends_the_server(tmp_path: Path) -> None:
    config = tmp_path / "enginehouse.yaml"
    config.write_text(json.dumps({"server": {"port": free_port()}, "models": {"echo": ECHO}}))
    server, terminal = pty.fork()
    if server == 0:
        log = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 2)
        os.execv(COMMAND[0], [*COMMAND, "serve", "--config", str(config)])
    while "startup complete" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(server, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert "Application shutdown complete" in (tmp_path / "log").read_text()
