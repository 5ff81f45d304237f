"""A page in headless Chromium asks a server of another origin; `make clients` installs the browser."""

import functools
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.client_results import INSTALLED
from tests.serving import Served, free_port, serve

SCRIPT = Path(__file__).with_name("page.mjs")
NODE = Path(f"{INSTALLED}-node")
ECHO = {"echo": {"source": "builtin:echo"}}
SECONDS = 120


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def site(folder: Path, port: int) -> Iterator[str]:
    """Pages of an origin, as a web server has them."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{port}"
        server.shutdown()


def read_by(page: str, served: Served, folder: Path) -> dict[str, Any]:
    with SCRIPT.open() as text:
        ran = subprocess.run(
            [str(INSTALLED / "bin" / "node"), "--input-type=module", "-", page, served.root, "k"],
            cwd=NODE,
            env=os.environ | {"TMPDIR": str(folder), "HOME": str(folder)},
            stdin=text,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_a_page_reads_streams_lines_and_errors_where_its_origin_is_allowed_and_else_nothing(tmp_path: Path) -> None:
    if not (NODE / "node_modules" / "@sparticuz" / "chromium").exists():
        pytest.skip(f"no Chromium in '{NODE}'; 'make clients' installs it")
    pages, house = tmp_path / "pages", tmp_path / "house"
    pages.mkdir()
    house.mkdir()
    (pages / "index.html").write_text("<!doctype html><title>a page</title>")
    allowed, other = free_port(), free_port()
    with (
        site(pages, allowed) as page,
        site(pages, other) as stranger,
        serve(house, ECHO, api_keys=["k"], cors_origins=[page]) as served,
    ):
        read, unread = (read_by(one, served, tmp_path) for one in (page, stranger))
    assert (read["origin"], unread["origin"]) == (page, stranger)
    assert (read["streamed"]["status"], read["streamed"]["runtime"]) == (200, "echo")
    assert read["streamed"]["text"].endswith("data: [DONE]\n\n")
    assert json.loads(read["lines"]["text"].splitlines()[-1])["done"]
    assert read["unknown"]["status"] == 404
    assert read["keyless"]["status"] == 401
    assert "a valid API key is needed" in read["keyless"]["text"]
    failed = {"failed": "TypeError"}
    assert [unread[one] for one in ("streamed", "lines", "unknown", "keyless")] == [failed] * 4
