"""Worker: the server's handle on one worker process. The only place that knows frames and pipes on this side."""

import asyncio
import itertools
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping

from runtimes.contract import Delta, Done, EngineFailed, Facts, Job, Load, Refused, Unavailable
from runtimes.wire import (
    LENGTH_BYTES,
    Cancel,
    Emit,
    LoadFailed,
    Loading,
    Ready,
    Refusal,
    Start,
    Submit,
    ToServer,
    decode_to_server,
    frame,
)

log = logging.getLogger("enginehouse.worker")
STDERR_LINES = 12
GRACE_SECONDS = 5.0

Item = Delta | Done | Refusal | EngineFailed


class WorkerDied(EngineFailed):
    """The process is gone; jobs that have sent nothing may run elsewhere."""


class Worker:
    """One worker process. Owned by the pool; `start` once, `stream` many times, `close` once."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the model, for messages
        self.facts: Facts
        self.load_seconds = 0.0
        self.death = ""  # of what it died
        self._jobs: dict[int, asyncio.Queue[Item]] = {}
        self._ids = itertools.count()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self, load: Load, environment: Mapping[str, str], report: Callable[[float], None]) -> None:
        """Raises Unavailable with the engine's own sentence when it cannot load."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "runtimes.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is the server's to answer
        )
        self._tasks.append(asyncio.create_task(self._keep_stderr()))
        try:
            self._write(frame(Start(load)))
            await self._ready(report)
        except BaseException:
            self.close()
            raise
        self._tasks.append(asyncio.create_task(self._read()))

    async def _ready(self, report: Callable[[float], None]) -> None:
        while True:
            match await self._receive():
                case Loading(fraction):
                    report(fraction)
                case Ready(facts, seconds):
                    self.facts, self.load_seconds = facts, seconds
                    return
                case LoadFailed(message):
                    raise Unavailable(f"model '{self.name}' cannot be loaded: {message}", "model_load_failed")
                case None:
                    raise Unavailable(
                        f"model '{self.name}' cannot be loaded: {await self._obituary()}", "model_load_failed"
                    )

    async def stream(self, job: Job) -> AsyncGenerator[Delta | Done, None]:
        """What the model says, to its end. Closing the iterator early cancels the job in the engine."""
        if self.death:
            raise WorkerDied(self.death)
        number = next(self._ids)
        submit = Submit(number, job.messages, job.tools, job.template_options, job.sampling)
        try:
            request = frame(submit)
        except OverflowError as error:
            raise Refused("the request holds a whole number beyond 64 bits") from error
        queue = self._jobs[number] = asyncio.Queue()
        try:
            self._write(request)
            while True:
                items = [await queue.get()]
                while not queue.empty():
                    items.append(queue.get_nowait())
                for item in merged(items):
                    if isinstance(item, Refusal):
                        raise Refused(item.message, item.param, item.code)
                    if isinstance(item, EngineFailed):
                        raise item
                    if isinstance(item, Done):
                        del self._jobs[number]
                        yield item
                        return
                    yield item
        finally:
            if self._jobs.pop(number, None) and not self.death:
                self._write(frame(Cancel(number)))

    def close(self) -> None:
        """Ends the process: politely by closing its stdin, by force if it does not listen."""
        if self._process.returncode is None and self._process.stdin:
            self._process.stdin.close()
            self._tasks.append(asyncio.create_task(self._force()))

    async def closed(self) -> None:
        await self._process.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _force(self) -> None:
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
        except TimeoutError:
            self._process.kill()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin
        self._process.stdin.write(data)

    async def _receive(self) -> ToServer | None:
        """The next message, None when the worker is gone."""
        assert self._process.stdout
        try:
            header = await self._process.stdout.readexactly(LENGTH_BYTES)
            body = await self._process.stdout.readexactly(int.from_bytes(header, "little"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        message: ToServer = decode_to_server(body)
        return message

    async def _read(self) -> None:
        while message := await self._receive():
            match message:
                case Emit(deltas, dones):
                    for number, delta in deltas:
                        if queue := self._jobs.get(number):
                            queue.put_nowait(delta)
                    for number, done in dones:
                        if queue := self._jobs.get(number):
                            queue.put_nowait(done)
                case Refusal(number):
                    if queue := self._jobs.get(number):
                        queue.put_nowait(message)
        self.death = f"the engine of model '{self.name}' died: {await self._obituary()}"
        for queue in self._jobs.values():
            queue.put_nowait(WorkerDied(self.death))

    async def _keep_stderr(self) -> None:
        assert self._process.stderr
        rest = b""
        while chunk := await self._process.stderr.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._stderr.append(line.decode("utf-8", "replace").rstrip())
                log.info("%s: %s", self.name, self._stderr[-1])

    async def _obituary(self) -> str:
        code = await self._process.wait()
        await asyncio.gather(self._tasks[0], return_exceptions=True)
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"{cause}; it last wrote: {self._stderr[-1]}" if self._stderr else cause


def merged(items: list[Item]) -> list[Item]:
    """What came while nobody looked, with each run of text as one delta: a slow client gets fewer, larger events."""
    out = items[:1]
    for item in items[1:]:
        before = out[-1]
        if isinstance(item, Delta) and isinstance(before, Delta) and item.text and before.text:
            out[-1] = Delta(before.text + item.text)
        else:
            out.append(item)
    return out
