"""A machine that has run out of something: the client is told what, and what helps, and the server goes on."""

import errno
import fcntl
import resource
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.locks import Locks
from tests.serving import Served, serve

SECONDS = 60
ECHO: dict[str, Any] = {"echo": {"source": "builtin:echo"}}


def ask(served: Served) -> httpx.Response:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=SECONDS)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process can be set on Linux alone")
def test_a_load_for_which_there_are_no_files_left_is_a_503_with_the_remedy(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO) as served:
        httpx.get(f"{served.root}/v1/models/echo/explain", timeout=SECONDS)  # and with it all that is looked up once
        process = psutil.Process(served.process.pid)
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds() + 4, limits[1]))
        before = process.num_fds()
        for _ in range(5):
            reply = ask(served)
        assert process.num_fds() <= before + 2
        assert reply.status_code == 503, reply.text
        assert "ulimit -n" in reply.json()["error"]["message"]
        assert reply.headers["retry-after"]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
        assert ask(served).status_code == 200


def test_a_disk_without_locks_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)  # what some network disks answer; there is none here
    locks = Locks(tmp_path)
    for take in (lambda: locks.shared("a"), lambda: locks.is_held("a"), lambda: locks.alone("a").__enter__()):
        with pytest.raises(CannotBuild, match="cannot be locked: No locks available; set cache_dir"):
            take()
