"""A stand-in for the model hub on this machine: the few routes huggingface_hub asks, over a folder of repositories."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    def __init__(self, folder: Path) -> None:
        self.folder = folder  # OWNER/NAME/files
        self.gated: set[str] = set()
        self.token: str | None = None  # the only one that is valid
        self.down = False
        self.breaks: set[str] = set()  # files that break off in their middle, once
        self.stalls: set[str] = set()  # files of which half is sent, and then nothing
        self.stalled = threading.Event()
        self.served: list[str] = []  # "OWNER/NAME/FILE", as they are downloaded
        self.bytes = 0  # of files, sent
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        parts = request.path.split("?")[0].strip("/").split("/")
        given = request.headers.get("Authorization")
        if self.down:
            return self.fail(request, 503, "", "Service Unavailable")
        if given and given != f"Bearer {self.token}":
            return self.fail(request, 401, "", "Invalid credentials in Authorization header")
        match parts:
            case ["api", "models", owner, name, "revision", revision]:
                self.describe(request, f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "tree", _]:
                self.list_files(request, self.folder / owner / name)
            case [owner, name, "resolve", _, *file]:
                self.send_file(request, f"{owner}/{name}", "/".join(file), body)
            case _:
                self.fail(request, 404, "EntryNotFound", "no such route")
        return None

    def describe(self, request: BaseHTTPRequestHandler, repository: str, revision: str) -> None:
        folder = self.folder / repository
        if not folder.is_dir():
            return self.fail(request, 401, "RepoNotFound", "Repository not found")
        if revision not in ("main", COMMIT):
            return self.fail(request, 404, "RevisionNotFound", "Invalid rev id")
        files = [{"rfilename": str(file.relative_to(folder))} for file in sorted(folder.rglob("*")) if file.is_file()]
        self.send(request, json.dumps({"id": repository, "sha": COMMIT, "siblings": files}).encode(), {}, True)
        return None

    def list_files(self, request: BaseHTTPRequestHandler, folder: Path) -> None:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        tree = [
            {"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": "0"}
            for file in files
        ]
        self.send(request, json.dumps(tree).encode(), {}, True)

    def send_file(self, request: BaseHTTPRequestHandler, repository: str, name: str, body: bool) -> None:
        file = self.folder / repository / name
        if repository in self.gated:
            return self.fail(request, 403, "GatedRepo", "Access to this repository is restricted")
        if not file.is_file():
            return self.fail(request, 404, "EntryNotFound", "Entry not found")
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        if body:
            self.served.append(f"{repository}/{name}")
            if begin := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
                headers["Content-Range"] = f"bytes {begin[1]}-{len(data) - 1}/{len(data)}"
                data = data[int(begin[1]) :]
            if f"{repository}/{name}" in self.stalls:
                self.send(request, data, headers, body, len(data) // 2)
                self.stalled.set()
                request.rfile.read(1)  # until the client is gone
                return None
            if f"{repository}/{name}" in self.breaks:
                self.breaks.clear()
                self.bytes += len(data) // 2
                self.send(request, data, headers, body, len(data) // 2)
                request.close_connection = True
                return None
            self.bytes += len(data)
        self.send(request, data, headers, body)
        return None

    def send(
        self,
        request: BaseHTTPRequestHandler,
        data: bytes,
        headers: dict[str, str],
        body: bool,
        only: int | None = None,
    ) -> None:
        """`only`: so many bytes of what is promised."""
        request.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(data[:only])

    def fail(self, request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", message)
        request.send_header("Content-Length", "0")
        request.end_headers()


@contextmanager
def running(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
