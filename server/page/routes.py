"""GET / and /page/NAME: the page's files, without a key. What they fetch wants one.

The policy lets nothing run, load or be sent but to and from this server, and takes no text for markup: what a model
writes cannot become anything else than text.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Response, route
from litestar.datastructures import State
from litestar.enums import HttpMethod
from litestar.exceptions import NotFoundException

from enginehouse.server.api.ollama.routes import GREETING

READ = [HttpMethod.GET, HttpMethod.HEAD]
INDEX = "index.html"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{what} {where}" for what, where in POLICY.items()),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # it asks each time whether there is another
}


class File(msgspec.Struct, frozen=True):
    content: bytes
    kind: str
    etag: str


@cache
def files() -> dict[str, File]:
    """By name; read once."""
    return {path.name: read(path) for path in (Path(__file__).parent / "files").iterdir() if path.suffix in KINDS}


def read(path: Path) -> File:
    content = path.read_bytes()
    return File(content, KINDS[path.suffix], f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"')


@route("/", http_method=READ, include_in_schema=False)
async def root(request: Request[Any, Any, State]) -> Response[Any]:
    """The page for a browser; for anybody else the words that Ollama's clients look for."""
    if "text/html" in request.headers.get("accept", ""):
        return answer(request, INDEX, {"vary": "accept"})
    return Response(GREETING, media_type="text/plain", headers={"vary": "accept"})


@route("/page/{name:str}", http_method=READ, include_in_schema=False)
async def file(request: Request[Any, Any, State], name: str) -> Response[Any]:
    return answer(request, name, {})


def answer(request: Request[Any, Any, State], name: str, further: dict[str, str]) -> Response[Any]:
    found = files().get(name)
    if found is None:
        raise NotFoundException
    headers = HEADERS | further | {"etag": found.etag}
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(None, status_code=304, headers=headers)
    return Response(found.content, media_type=found.kind, headers=headers)


ROUTES = [root, file]
