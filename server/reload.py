"""The config while the server runs: read again when its file changes and on SIGHUP, and applied as far as possible."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from litestar import Litestar
from watchfiles import awatch

from enginehouse.config.load import BadConfig
from enginehouse.config.schema import Config, Server
from enginehouse.runtimes.metrics import RELOADS
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import logs, systemd
from enginehouse.server.auth import Access

log = logging.getLogger("enginehouse.config")
FIXED_OF_SERVER = ("host", "port", "ollama", "otlp_traces_endpoint")
FIXED = ("cache_dir",)
SECRET = ("api_keys", "batch_keys", "admin_keys", "keys")
DEBOUNCE_MILLISECONDS = 400  # editors write in several steps
LOOK_MILLISECONDS = 2000


class ConfigFile(NamedTuple):
    path: Path
    content: bytes  # as it was before it was read for the first time
    read: Callable[[], Config]  # with all that wins over it, as at the start; raises BadConfig


class Reload:
    def __init__(self, app: Litestar, file: ConfigFile) -> None:
        self._app, self._file = app, file
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """For the event loop's thread."""
        self._asked.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                await self._asked.wait()
                self._asked.clear()
                systemd.notify(systemd.reloading())
                try:
                    await self.reload()
                except Exception:  # a file that is mended is to be read all the same
                    log.exception("the new config could not be applied")
                systemd.notify(systemd.READY)

    async def reload(self) -> None:
        try:
            config = await asyncio.to_thread(self._file.read)
        except BadConfig as error:
            RELOADS.labels("refused").inc()
            log.error("the new config is refused, and the old one stays: %s", error)
            self._app.state.refused = (
                f"refused at {time.strftime('%FT%TZ', time.gmtime())}, the old one stays; see the log"
            )
            return
        self._app.state.refused = ""
        self._apply(config)

    def _apply(self, wanted: Config) -> None:
        pool: Pool = self._app.state.pool
        old, config = pool.config, with_fixed(wanted, pool.config)
        for difference in differences(config, wanted):
            log.warning("config: %s; that needs a restart", difference)
        changes = list(differences(old, config))
        for change in changes:
            log.info("config: %s", change)
        if changes:
            logs.configure(config.server)
            self._app.state.access = Access(config.server)
            pool.reconfigure(config)
        RELOADS.labels("applied" if changes else "unchanged").inc()
        log.info("the config was read again; %d changes", len(changes))

    async def _watch(self) -> None:
        """The folder too: editors and Kubernetes put another file in the place of the old one. And every few seconds
        whatever is heard: a mounted file may change without a word."""
        path, content, _ = self._file
        try:
            async for _ in awatch(
                path,
                path.parent,
                recursive=False,
                watch_filter=None,
                debounce=DEBOUNCE_MILLISECONDS,
                rust_timeout=LOOK_MILLISECONDS,
                yield_on_timeout=True,
            ):
                before, content = content, await asyncio.to_thread(bytes_of, path)
                if content != before:
                    self.ask()
        except OSError as error:
            log.warning("'%s' is not watched (%s); after a change send SIGHUP", path, error)


def bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def with_fixed(config: Config, running: Config) -> Config:
    """What cannot change while the server runs stays as it is."""
    server = msgspec.structs.replace(config.server, **{key: getattr(running.server, key) for key in FIXED_OF_SERVER})
    return msgspec.structs.replace(config, server=server, **{key: getattr(running, key) for key in FIXED})


def differences(old: Config, new: Config) -> Iterator[str]:
    """One line for each key whose value is another one; of secrets only that."""
    for key in old.models.keys() - new.models.keys():
        yield f"models.{key} is gone"
    for key in new.models.keys() - old.models.keys():
        yield f"models.{key} is new"
    for key in old.models.keys() & new.models.keys():
        yield from changed(f"models.{key}", old.models[key], new.models[key])
    yield from changed("", msgspec.structs.replace(old, models={}), msgspec.structs.replace(new, models={}))


def changed(where: str, old: msgspec.Struct, new: msgspec.Struct) -> Iterator[str]:
    for field in msgspec.structs.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        key = f"{where}.{field.name}" if where else field.name
        if before == after:
            continue
        if isinstance(before, msgspec.Struct) and isinstance(after, msgspec.Struct):
            yield from changed(key, before, after)
        elif isinstance(old, Server) and field.name in SECRET:
            yield f"{key} changed; {len(before)} keys before, {len(after)} now"
        else:
            yield f"{key} was {msgspec.json.encode(before).decode()}, is {msgspec.json.encode(after).decode()}"
