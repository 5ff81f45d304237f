"""Serving: the application under uvicorn, and its orderly end."""

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Sequence
from types import FrameType

import uvicorn
from litestar import Litestar

from enginehouse.config import schema
from enginehouse.config.schema import seconds
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import systemd
from enginehouse.server.api.responses import websocket
from enginehouse.server.api.responses.background import Background
from enginehouse.server.connection import Connections
from enginehouse.server.cors import allowing
from enginehouse.server.limits import IDLE_SECONDS, LARGEST_BODY_BYTES
from enginehouse.server.rate_limits import metered
from enginehouse.server.reload import ConfigFile, Reload

log = logging.getLogger("enginehouse.server")
FAREWELL_SECONDS = 1  # after `drain_timeout`, in which answers that have not ended may say so
LOOK_SECONDS = 0.05


def run(app: Litestar, file: ConfigFile, listeners: Sequence[socket.socket]) -> None:
    """Until a signal ends it: SIGTERM, SIGINT, or a terminal that closes."""
    connections = Connections(lambda: seconds(configured(app).send_timeout), [websocket.PATH])
    over_http = metered(app)

    def origins() -> Sequence[str]:
        return configured(app).cors_origins

    options = uvicorn.Config(
        allowing(websocket.over_websocket(over_http, origins), origins),
        http=connections.connect,  # type: ignore[arg-type]  # a class, it says; it only calls it
        ws=connections.upgrade,  # type: ignore[arg-type]
        ws_max_size=LARGEST_BODY_BYTES,
        ws_ping_timeout=None,  # who reads slowly answers late: `send_timeout` is what ends it
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        callback_notify=connections.sweep,
        timeout_notify=0,  # it looks once a second
        timeout_graceful_shutdown=FAREWELL_SECONDS,
    )
    Server(options, app, connections, Reload(app, file)).run(list(listeners))


def configured(app: Litestar) -> schema.Server:
    pool: Pool = app.state.pool
    return pool.config.server


class Server(uvicorn.Server):
    """uvicorn's cuts answers short; this one lets them end first, and then say that they are ended."""

    def __init__(self, options: uvicorn.Config, app: Litestar, connections: Connections, reload: Reload) -> None:
        super().__init__(options)
        self._app, self._connections, self._reload = app, connections, reload
        self._hurried = False  # by a second signal
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._listen_for_hangups()
        await super().startup(sockets)
        self._tasks = [asyncio.create_task(self._announce()), asyncio.create_task(self._reload.run())]

    def _listen_for_hangups(self) -> None:
        """Before the server says that it is there: SIGHUP would end it until then."""
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            loop, terminal = asyncio.get_running_loop(), has_terminal()

            def hang_up(sig: int, frame: FrameType | None) -> None:
                if terminal and not has_terminal():
                    self.handle_exit(sig, frame)
                else:
                    loop.call_soon_threadsafe(self._reload.ask)

            signal.signal(signal.SIGHUP, hang_up)

    async def _announce(self) -> None:
        pool: Pool = self._app.state.pool
        await pool.preloaded()
        log.info("ready")
        systemd.notify(systemd.READY)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal drains, a second ends at once what is still answered, a third does not even clean up."""
        if not self.should_exit:
            super().handle_exit(sig, frame)
        elif not self._hurried:
            self._hurried = True
        else:
            self.force_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        pool: Pool = self._app.state.pool
        pool.refuse()
        self._connections.leave()
        for task in self._tasks:
            task.cancel()
        systemd.notify(systemd.STOPPING)
        patience = pool.config.server.drain_timeout
        log.info("shutting down; answers under way have %s to end, unless a second signal comes", patience)
        await self._quiet(seconds(patience), lambda: self._hurried)
        pool.interrupt()
        await self._quiet(FAREWELL_SECONDS, lambda: self.force_exit)
        self._connections.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown(sockets)

    async def _quiet(self, patience: float | None, hurried: Callable[[], bool]) -> None:
        """Until nothing is answered any more, or for so many seconds."""
        now = asyncio.get_running_loop().time
        deadline = math.inf if patience is None else now() + patience
        background: Background = self._app.state.background
        while (self.server_state.tasks or background.under_way) and now() < deadline and not hurried():  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)  # a signal's handler could set no event


def has_terminal() -> bool:
    """Whether the process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
