"""Connections: uvicorn's HTTP/1.1 over httptools with limits of size and time, of which it has none, before any route
or key is looked at; and how many there may be."""

import asyncio
import logging
import resource
from collections.abc import Callable, Collection
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from enginehouse.server import request_id
from enginehouse.server.errors import CLIENT_ERROR, SERVER_ERROR, ErrorBody, ErrorReply
from enginehouse.server.limits import (
    BODY_PAUSE_SECONDS,
    BODY_SECONDS,
    HEAD_BYTES,
    HEAD_SECONDS,
    HEADERS,
    OPEN_FILES,
    PIPELINED,
)
from enginehouse.server.sse import encode
from enginehouse.server.websocket import WebSocket

log = logging.getLogger("enginehouse.connections")
RESERVED_FILES = 256  # for workers, builds and what they read
FULL = ErrorBody("too many connections are open; ask again", SERVER_ERROR, None, "too_many_connections")


class Connections:
    """Those that are open. For one too many, that which has been idle the longest is closed."""

    def __init__(self, send_seconds: Callable[[], float | None], websockets: Collection[str] = ()) -> None:
        self.send_seconds = send_seconds  # an answer may wait so long for its client to take more of it
        self.websockets = {path.encode() for path in websockets}  # where a connection may become one
        self.idle: dict[Connection | WebSocket, None] = {}  # no request is under way; the longest first
        self._open: set[Connection | WebSocket] = set()
        self._most = most_connections()
        self._leaving = False

    def connect(self, **server: Any) -> "Connection":
        """What uvicorn makes for each client."""
        return Connection(self, **server)

    def upgrade(self, **server: Any) -> WebSocket:
        """And for each that asks for a WebSocket."""
        return WebSocket(self, **server)

    def add(self, connection: "Connection | WebSocket") -> None:
        self._open.add(connection)
        self.idle[connection] = None
        if len(self._open) > self._most:
            oldest = next(iter(self.idle))
            if oldest is connection:
                connection.app = full  # all others are busy
            else:
                del self.idle[oldest]
                oldest.make_room()

    def remove(self, connection: "Connection | WebSocket") -> None:
        self._open.discard(connection)
        self.idle.pop(connection, None)

    def note_idle(self, connection: "Connection | WebSocket", idle: bool) -> None:
        if not idle:
            self.idle.pop(connection, None)
        elif self._leaving and isinstance(connection, WebSocket):
            connection.shutdown()
        else:
            self.idle[connection] = None

    def leave(self) -> None:
        """WebSockets end when nothing is asked there any more: they would not by themselves."""
        self._leaving = True
        for connection in list(self.idle):
            if isinstance(connection, WebSocket):
                connection.shutdown()

    async def sweep(self) -> None:
        """Ends those whose client has had its time; to be called every second or so."""
        now = asyncio.get_running_loop().time()
        patience = self.send_seconds()
        for connection in list(self._open):
            connection.end_if_overdue(now, patience)

    def abort(self) -> None:
        """Ends those that have something to answer or to send still."""
        for connection in list(self._open):
            if connection not in self.idle or connection.transport.get_write_buffer_size():
                connection.transport.abort()


class Connection(HttpToolsProtocol):
    def __init__(self, connections: Connections, **server: Any) -> None:
        super().__init__(**server)
        self._connections = connections
        self._expected: Literal["head", "body"] | None = "head"  # of the client
        self._since = self._heard = self._moved = self.loop.time()
        self._unsent = 0  # bytes, when last looked at
        self._bytes = 0  # that came since the last piece of a body, or since the message began
        self._head = 0  # bytes of names and values
        self._excess: tuple[int, ErrorBody] | None = None
        self._answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        super().connection_lost(exc)
        if self._answered:  # uvicorn tells only the last of several that came at once
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        if self._expected is None:
            self._expect("head")
        self._bytes += len(data)
        super().data_received(data)
        if self._bytes > HEAD_BYTES and self._expected and not self.transport.is_closing():
            self._refuse(*too_large_headers())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        id = request_id.id_for(cycle.scope["headers"])
        cycle.scope[request_id.KEY] = id  # type: ignore[literal-required]
        cycle.default_headers = [*cycle.default_headers, *request_id.headers_of(id)]
        super()._start_asgi_task(cycle, as_get(app) if cycle.scope["method"] == "HEAD" else app)

    def _should_upgrade_to_ws(self) -> bool:
        answering = self.cycle is not None and not self.cycle.response_complete
        path = self.url.partition(b"?")[0]
        return self.scope["method"] == "GET" and path in self._connections.websockets and not answering

    def handle_websocket_upgrade(self) -> None:
        self._expected = None
        self._connections.remove(self)
        super().handle_websocket_upgrade()

    # --- what the parser finds ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect("head")
        self._head = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > HEAD_BYTES:
            self._exceed(too_long_url())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head, or one that comes after a body."""
        super().on_header(name, value)
        self._bytes = 0
        self._head += len(name) + len(value)
        if self._head > HEAD_BYTES or len(self.headers) > HEADERS:
            self._exceed(too_large_headers())

    def on_headers_complete(self) -> None:
        self._connections.note_idle(self, False)
        super().on_headers_complete()
        self._expect("body")
        if len(self.pipeline) > PIPELINED:
            self._exceed((400, ErrorBody(f"more than {PIPELINED} requests wait on one connection", CLIENT_ERROR)))

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._bytes = 0

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._expect(None)
        self._note_idle()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_idle()

    # --- its end ---

    def end_if_overdue(self, now: float, patience: float | None) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        elif unsent and patience is not None and now - self._moved > patience:
            log.info("a client has taken nothing of its answer for %g s; its connection is ended", patience)
            self.transport.abort()
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing():
            return
        if self.flow.read_paused or (answering and self._expected == "head"):
            self._since = self._heard = now  # it is not the client that is waited for
        elif self._expected == "head" and now - self._since > HEAD_SECONDS:
            self.transport.close()
        elif self._expected == "body" and (now - self._heard > BODY_PAUSE_SECONDS or now - self._since > BODY_SECONDS):
            self._refuse(408, ErrorBody("the request's body did not come to its end in time", CLIENT_ERROR))

    def make_room(self) -> None:
        """Ends it while it is idle."""
        if self.cycle is None:
            self._refuse(503, FULL)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's word for whatever the parser refuses, or what is refused above in its name."""
        self._refuse(*(self._excess or (400, ErrorBody("the request is not HTTP/1.1", CLIENT_ERROR))))

    def _refuse(self, status: int, error: ErrorBody) -> None:
        if self._is_next_to_be_answered():
            self.transport.write(refusal(status, error))
        self.transport.close()

    def _is_next_to_be_answered(self) -> bool:
        """Whether what is written now would be taken for the answer to what is being received."""
        if self._expected == "body":
            return not self.cycle.response_started and not self.pipeline
        return self.cycle is None or self.cycle.response_complete

    def _exceed(self, excess: tuple[int, ErrorBody]) -> None:
        self._excess = excess
        raise ValueError(excess[1].message)  # the parser stops, and uvicorn answers

    def _expect(self, what: Literal["head", "body"] | None) -> None:
        self._expected, self._since, self._bytes = what, self._heard, 0

    def _note_idle(self) -> None:
        if not self._expected and self.cycle is not None and self.cycle.response_complete:
            self._connections.note_idle(self, True)


def as_get(app: Any) -> Any:
    """What is asked of HEAD is what GET would answer; uvicorn sends no body of it."""

    async def get(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"method": "GET"}, receive, send)

    return get


def too_long_url() -> tuple[int, ErrorBody]:
    return 414, ErrorBody(f"the URL has more than {HEAD_BYTES} bytes", CLIENT_ERROR, None, "url_too_long")


def too_large_headers() -> tuple[int, ErrorBody]:
    message = f"the headers have more than {HEAD_BYTES} bytes, or there are more than {HEADERS}"
    return 431, ErrorBody(message, CLIENT_ERROR, None, "headers_too_large")


def refusal(status: int, error: ErrorBody) -> bytes:
    body = encode(ErrorReply(error))
    ids = b"".join(b"%b: %b\r\n" % header for header in request_id.headers_of(request_id.id_for(())))
    return b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        STATUS_LINE[status],
        ids,
        len(body),
        body,
    )


async def full(scope: Any, receive: Any, send: Any) -> None:
    """The application, where there are too many connections."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), (b"retry-after", b"1")]
    before = "websocket." if scope["type"] == "websocket" else ""
    await send({"type": f"{before}http.response.start", "status": 503, "headers": headers})
    await send({"type": f"{before}http.response.body", "body": encode(ErrorReply(FULL))})


def most_connections() -> int:
    """What the limit of open files leaves, after it was raised as far as we need and may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    files = OPEN_FILES if soft == resource.RLIM_INFINITY else min(soft, OPEN_FILES)
    return max(files - RESERVED_FILES, files // 2)
