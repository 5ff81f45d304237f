"""/v1/responses as a WebSocket: each message is a POST to the same application, and each event of its stream a message.
What holds for a request holds so for a message: keys and their limits, models, urgency, sizes."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from enginehouse.runtimes.errors import Refused
from enginehouse.server import body, cors, limits, request_id, sse
from enginehouse.server.api.responses import chain
from enginehouse.server.errors import CLIENT_ERROR, ErrorBody, ErrorReply, Forbidden, describe
from enginehouse.server.limits import LARGEST_BODY_BYTES, SOCKET_WAITING
from enginehouse.server.websocket import IDLE

PATH = "/v1/responses"
CREATE = "response.create"
OF_THE_HANDSHAKE = (b"connection", b"upgrade", b"origin", b"content-type", b"content-length", b"transfer-encoding")
UPGRADE_REQUIRED = 426  # what a GET is told that is none: who may ask so far may open a WebSocket
GOING_AWAY, POLICY_VIOLATION = 1001, 1008
Message = dict[str, Any]


def over_websocket(app: Any, origins: Callable[[], Sequence[str]]) -> Any:
    """The application, which knows HTTP alone, also for WebSockets. `origins`: of the pages that may open one."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await Talk(app, scope, receive, send).run(origins())
        else:
            await app(scope, receive, send)

    return call


class Talk:
    def __init__(self, app: Any, scope: Message, receive: Any, send: Any) -> None:
        self._app, self._scope, self._receive, self._send = app, scope, receive, send
        self._chain = chain.Chain()
        self._waiting: asyncio.Queue[str | bytes | None] = asyncio.Queue()  # None: no more will come
        self._waiting_bytes = 0
        self._reading: asyncio.Task[bool] | None = None

    async def run(self, origins: Sequence[str]) -> None:
        await self._receive()  # that someone wants to connect
        if answer := await self._refusal(origins):
            for message in answer:
                await self._send(message | {"type": f"websocket.{message['type']}"})
            return
        headers = request_id.headers_of(self._scope[request_id.KEY])
        await self._send({"type": "websocket.accept", "headers": headers})
        self._reading = asyncio.create_task(self._read())
        try:
            await self._take_turns()
        finally:
            self._reading.cancel()

    async def _refusal(self, origins: Sequence[str]) -> list[Message]:
        """Nothing where a GET gets as far as to be told that it is to be a WebSocket."""
        headers = dict(self._scope["headers"])
        if (origin := headers.get(b"origin")) and not may_open(origin, headers.get(b"host", b""), origins):
            return answer_to(Forbidden("no page of this origin may open a WebSocket here; see server.cors_origins"))
        answer: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            answer.append(message)

        await self._app(self._request("GET", b""), receive, send)
        return [] if answer[0]["status"] == UPGRADE_REQUIRED else answer

    async def _read(self) -> bool:
        """Until the client leaves, or, True, sends more than may wait. It reads on while it is answered: else nobody
        would hear that it left."""
        try:
            while (message := await self._receive())["type"] == "websocket.receive":
                sent = message.get("text") or message.get("bytes") or ""
                self._waiting_bytes += len(sent)
                if self._waiting.qsize() >= SOCKET_WAITING or self._waiting_bytes > LARGEST_BODY_BYTES:
                    return True
                self._waiting.put_nowait(sent)
            return False
        finally:
            self._waiting.put_nowait(None)

    async def _take_turns(self) -> None:
        """One message after the other."""
        until = asyncio.get_running_loop().time() + limits.SOCKET_SECONDS
        idle: Callable[[bool], None] = self._scope.get(IDLE, lambda idle: None)
        assert self._reading
        while not self._reading.done():
            idle(self._waiting.empty())
            try:
                async with asyncio.timeout_at(until):
                    sent = await self._waiting.get()
            except TimeoutError:
                minutes = limits.SOCKET_SECONDS // 60
                message = f"a WebSocket is closed after {minutes} minutes; open another and go on there"
                await self._fail(400, ErrorBody(message, CLIENT_ERROR, None, "websocket_connection_limit_reached"))
                await self._close(GOING_AWAY)
                return
            if sent is None:
                break
            idle(False)
            self._waiting_bytes -= len(sent)
            await self._take_turn(sent)
        if self._reading.result():
            message = f"{SOCKET_WAITING} requests, or {LARGEST_BODY_BYTES} bytes, wait already; wait for their answers"
            await self._fail(429, ErrorBody(message, CLIENT_ERROR, None, "too_many_requests"))
            await self._close(POLICY_VIOLATION)

    async def _take_turn(self, sent: str | bytes) -> None:
        try:
            asked = (
                await asyncio.to_thread(request_of, sent) if len(sent) > body.IN_A_THREAD_BYTES else request_of(sent)
            )
        except Refused as error:
            status, described, _ = describe(error)
            await self._fail(status, described)
            return
        received, streams, status, failed = False, False, 0, b""
        ended = asyncio.get_running_loop().create_future()

        async def receive() -> Message:
            nonlocal received
            if not received:
                received = True
                return {"type": "http.request", "body": asked, "more_body": False}
            assert self._reading
            await asyncio.wait([self._reading, ended], return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal streams, status, failed
            if message["type"] == "http.response.start":
                status = message["status"]
                streams = dict(message["headers"]).get(b"content-type", b"").startswith(sse.EVENTS.media_type.encode())
            elif streams:
                for event in sse.events_of(message.get("body", b"")):
                    await self._say(event.partition(b"\ndata: ")[2].rstrip())
            else:
                failed += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body"):
                if not streams and self._reading and not self._reading.done():
                    await self._fail(status, msgspec.json.decode(failed, type=ErrorReply).error)
                ended.set_result(None)

        await self._app(self._request("POST", asked), receive, send)

    def _request(self, method: str, sent: bytes) -> Message:
        """As if it had come by HTTP, with the headers of the handshake."""
        headers = [
            (name, value)
            for name, value in self._scope["headers"]
            if name not in OF_THE_HANDSHAKE and not name.startswith(b"sec-websocket-")
        ]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(sent)).encode())]
        of_this = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "headers": headers,
            "query_string": b"",
            "extensions": {},
            "state": dict(self._scope.get("state", {})),
            chain.SCOPE: self._chain,
            request_id.KEY: request_id.id_for(headers),
        }
        return self._scope | of_this

    async def _fail(self, status: int, error: ErrorBody) -> None:
        fields = msgspec.to_builtins(error) | {"code": error.code or error.type}
        await self._say(sse.encode({"type": "error", "status": status, "error": fields}))

    async def _say(self, text: bytes) -> None:
        with contextlib.suppress(OSError):  # the client has left, and whoever reads says so
            await self._send({"type": "websocket.send", "text": text.decode()})

    async def _close(self, code: int) -> None:
        with contextlib.suppress(OSError):
            await self._send({"type": "websocket.close", "code": code})


def request_of(sent: str | bytes) -> bytes:
    """What a message asks for, as the body of a POST. Raises Refused."""
    if isinstance(sent, bytes):
        raise Refused("a message is text; this one was binary", None, "invalid_value")
    fields = body.json_object(sent.encode())
    kind = fields.pop("type", b"null")
    if kind != f'"{CREATE}"'.encode():
        raise Refused(f"'type' must be '{CREATE}', the one message that is taken here", "type", "invalid_value")
    for key, only in (("stream", b"true"), ("background", b"false")):
        if fields.pop(key, only) not in (only, b"null"):
            raise Refused(f"'{key}' is of requests by HTTP; leave it out of a message", key, "unsupported_parameter")
    return body.joined(fields | {"stream": b"true"})


def may_open(origin: bytes, host: bytes, origins: Sequence[str]) -> bool:
    """A page of an allowed origin, or of the server's: no browser asks before it opens a WebSocket."""
    return (
        bool(cors.grant(origin, origins))
        or urlsplit(origin.decode("latin-1")).netloc.lower() == host.decode("latin-1").lower()
    )


def answer_to(error: Exception) -> list[Message]:
    status, described, _ = describe(error)
    return [
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]},
        {"type": "http.response.body", "body": sse.encode(ErrorReply(described)), "more_body": False},
    ]
