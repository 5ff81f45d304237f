"""Connections that became WebSockets: uvicorn's over websockets, counted and ended like the others."""

import asyncio
import functools
import logging
from typing import Any, Protocol

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from enginehouse.server import request_id

log = logging.getLogger("enginehouse.connections")
websockets_log = logging.getLogger("enginehouse.websockets")
websockets_log.setLevel(logging.WARNING)  # without a line for each that opens, with all of its query
websockets_log.addFilter(lambda record: "UTF-8" not in str(record.msg))  # nor a traceback for what a client sent
IDLE = "enginehouse.idle"  # of a scope: to be called with whether nothing is asked


class Others(Protocol):
    """All connections of the server."""

    def add(self, connection: Any) -> None: ...

    def remove(self, connection: Any) -> None: ...

    def note_idle(self, connection: Any, idle: bool) -> None: ...


class WebSocket(WebSocketsSansIOProtocol):
    def __init__(self, others: Others, **server: Any) -> None:
        super().__init__(**server)
        self.logger = self.conn.logger = websockets_log
        self._others = others
        self._unsent, self._moved = 0, self.loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._others.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.remove(self)
        super().connection_lost(exc)

    async def run_asgi(self) -> None:
        self._others.note_idle(self, False)  # until it is accepted
        this: dict[str, Any] = {
            request_id.KEY: request_id.id_for(self.scope["headers"]),
            IDLE: functools.partial(self._others.note_idle, self),
        }
        self.scope.update(this)  # type: ignore[typeddict-item]
        await super().run_asgi()

    def end_if_overdue(self, now: float, patience: float | None) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._moved = unsent, now
        elif unsent and patience is not None and now - self._moved > patience:
            log.info("a client has taken nothing of its answer for %g s; its connection is ended", patience)
            self.transport.abort()

    def make_room(self) -> None:
        """Ends it while it is idle."""
        if self.handshake_complete and not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.TRY_AGAIN_LATER})
            self.conn.send_close(CloseCode.TRY_AGAIN_LATER)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self.transport.close()
