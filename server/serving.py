"""Serving: the application under uvicorn, and its orderly end."""

import asyncio
import logging
import signal
import socket
from collections.abc import Sequence

import uvicorn
from litestar import Litestar

from enginehouse.config.schema import Config, seconds
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.connection import Connections
from enginehouse.server.cors import allowing
from enginehouse.server.limits import IDLE_SECONDS

log = logging.getLogger("enginehouse.server")
GRACE_SECONDS = 3  # after the signal to stop, in which answers may come to their end
FAREWELL_SECONDS = 1  # then, in which the others may say that they do not
LOOK_SECONDS = 0.05


def run(app: Litestar, config: Config, listeners: Sequence[socket.socket]) -> None:
    """Until a signal ends it: SIGTERM, SIGINT, or SIGHUP where it was not ignored from the start, as by nohup."""
    connections = Connections(seconds(config.server.send_timeout))
    options = uvicorn.Config(
        allowing(app, config.server.cors_origins),
        http=connections.connect,  # type: ignore[arg-type]  # a class, it says; it only calls it
        ws="none",  # else whoever asks for one leaves our connections' limits
        log_config=None,
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        callback_notify=connections.sweep,
        timeout_notify=0,  # it looks once a second
        timeout_graceful_shutdown=FAREWELL_SECONDS,
    )
    server = Server(options, app, connections)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run(list(listeners))


class Server(uvicorn.Server):
    """uvicorn's cuts answers short; this one lets them end first, and then say that they are ended."""

    def __init__(self, options: uvicorn.Config, app: Litestar, connections: Connections) -> None:
        super().__init__(options)
        self._app, self._connections = app, connections

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        pool: Pool = self._app.state.pool
        pool.refuse()
        log.info("shutting down; answers under way have %d s to end", GRACE_SECONDS)
        await self._quiet(GRACE_SECONDS)
        pool.interrupt()
        await self._quiet(FAREWELL_SECONDS)
        self._connections.abort()
        await super().shutdown(sockets)

    async def _quiet(self, seconds: float) -> None:
        """Until nothing is answered any more, or for so long; a second Ctrl-C makes it shorter."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.server_state.tasks and loop.time() < deadline and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)  # a signal's handler could set no event
