"""`enginehouse top`: what it shows is what the server does, in 80 columns, and a key ends it."""

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import COMMAND, Served, free_port, serve

SECONDS = 60
LONG = "a-model-with-a-name-that-is-much-longer-than-a-column-of-any-terminal-has-room-for"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    gone = {"base_urls": [f"http://127.0.0.1:{free_port()}/v1"], "model": "m"}
    models = {
        "echo": {"source": "builtin:echo"},
        LONG: {"source": "builtin:echo"},
        "remote": {"runtime": "upstream", "upstream": gone},
    }
    with serve(tmp_path_factory.mktemp("top"), models) as served:
        for model in ("echo", LONG):
            messages: list[dict[str, Any]] = [{"role": "user", "content": "hello there"}]
            body = {"model": model, "messages": messages}
            assert httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS).status_code == 200
        yield served


def environment(served: Served, **more: str) -> dict[str, str]:
    return {**os.environ, "ENGINEHOUSE_URL": served.root, "TERM": "xterm", **more}


def run(served: Served, *flags: str, **more: str) -> str:
    command = [*COMMAND, "top", *flags]
    done = subprocess.run(command, env=environment(served, **more), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_for_programs_there_is_json(served: Served) -> None:
    shown = json.loads(run(served, "--json"))
    echo, _, remote = shown["models"]
    assert (echo["model"], echo["state"], echo["running"], echo["waiting"]) == ("echo", "echo/cpu/echo", 0, 0)
    assert echo["answer_tokens_per_second"] == echo["prompt_tokens_per_second"] > 0
    assert echo["first_token_seconds"] > 0
    assert echo["memory_bytes"] > 1 << 20
    assert remote["first_token_seconds"] is None
    assert (shown["config_valid"], shown["upstreams"][0]["model"]) == (True, "remote")
    assert shown["requests_per_second"] > 0


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_the_terminal(served: Served, columns: int) -> None:
    lines = run(served, "--once", COLUMNS=str(columns)).splitlines()
    assert max(map(len, lines)) <= columns
    assert "echo" in lines[2]
    assert "MiB" in lines[1]
    assert any(line.startswith(LONG[:8]) for line in lines)


@pytest.mark.parametrize(("key", "status"), [(b"q", 0), (b"\x03", 130)])
def test_in_a_terminal_it_goes_on_until_a_key_is_pressed(
    served: Served, key: bytes, status: int, tmp_path: Path
) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execve(COMMAND[0], [*COMMAND, "top"], environment(served))
    seen, until = b"", time.monotonic() + SECONDS
    while seen.count(b"requests/s") < 2 and time.monotonic() < until:
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 1 << 16)
    assert b"echo/cpu/echo" in seen
    os.write(terminal, key)
    while True:  # it may wait until all it wrote is read
        try:
            if not os.read(terminal, 1 << 16):
                break
        except OSError:
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    os.close(terminal)


def test_where_no_server_is_it_says_so(tmp_path: Path) -> None:
    gone = {**os.environ, "ENGINEHOUSE_URL": f"http://127.0.0.1:{free_port()}"}
    done = subprocess.run([*COMMAND, "top", "--once"], env=gone, capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr.startswith("enginehouse: no server answers at")) == (1, True)
