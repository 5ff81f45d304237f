"""Pages of other origins in a browser: which may read what is answered here (CORS). Around the whole application, so
that a preflight needs no key and errors of any kind can be read."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

ANY = "*"
METHODS = b"GET, HEAD, POST, DELETE"
REMEMBERED_SECONDS = b"600"  # what a preflight was told
Header = tuple[bytes, bytes]


def allowing(app: Any, configured: Callable[[], Sequence[str]]) -> Any:
    """The application, with headers for the origins of the config. Litestar's own gives some of them to every origin,
    and takes a "*" in the middle of one for a pattern."""

    async def allowed(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not (origins := configured()):
            await app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        granted = [] if origin is None else grant(origin, origins)
        if granted and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await send({"type": "http.response.start", "status": 204, "headers": [*granted, *preflight(headers)]})
            await send({"type": "http.response.body"})
            return

        async def send_granted(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message.get("headers", ()), *granted, *varies(origins)]}
            await send(message)

        await app(scope, receive, send_granted)

    return allowed


def grant(origin: bytes, origins: Sequence[str]) -> list[Header]:
    """What tells a browser that a page of this origin may read the answer and all its headers."""
    if ANY not in origins and origin.decode("latin-1") not in origins:
        return []
    allowed = ANY.encode() if ANY in origins else origin
    return [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", b"*")]


def preflight(headers: dict[bytes, bytes]) -> Iterable[Header]:
    """Every header that is asked for: "*" would leave out the key."""
    yield b"access-control-allow-methods", METHODS
    yield b"access-control-max-age", REMEMBERED_SECONDS
    if wanted := headers.get(b"access-control-request-headers"):
        yield b"access-control-allow-headers", wanted
    yield b"vary", b"origin, access-control-request-headers"


def varies(origins: Sequence[str]) -> list[Header]:
    """What a cache keeps for one origin is not for another."""
    return [] if ANY in origins else [(b"vary", b"origin")]
