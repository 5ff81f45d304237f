"""Worker: the server's handle on one worker process. The only place that knows frames and pipes on this side."""

import asyncio
import itertools
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextvars import Context
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import psutil

from enginehouse.optimize import shortage
from enginehouse.runtimes.contract import Delta, Done, Facts, Job, Load, Pooling, Prompt, PromptProgress, ToolCall
from enginehouse.runtimes.errors import (
    RETRY_SECONDS,
    Busy,
    EngineFailed,
    NoMemory,
    Refused,
    TooLong,
    Unavailable,
    WorkerDied,
    shutting_down,
)
from enginehouse.runtimes.metrics import TokenMeter
from enginehouse.runtimes.worker.protocol import (
    LENGTH_BYTES,
    Cancel,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    Emit,
    Failure,
    Granted,
    Grow,
    LoadFailed,
    Loading,
    Ping,
    Pong,
    Ready,
    Refusal,
    Start,
    Submit,
    Tokenize,
    Tokenized,
    ToServer,
    decode_to_server,
    frame,
)
from enginehouse.runtimes.worker.watchdog import PING_SECONDS, STUCK_SECONDS, Look, Watchdog

log = logging.getLogger("enginehouse.worker")
WAITING_BYTES = 256 << 20  # of requests that a worker has not answered at all, in its pipe and memory
STDERR_LINES, LINE_BYTES = 12, 1 << 16  # kept of what a worker writes, and of a line that does not end
GRACE_SECONDS = 5.0

Reply = Embedded | Tokenized | Detokenized
Item = PromptProgress | Delta | Done | Reply | Refusal | EngineFailed | Unavailable
R = TypeVar("R", Embedded, Tokenized, Detokenized)


class Asked(NamedTuple):
    """What the engine works on."""

    replies: "asyncio.Queue[Item]"
    generated: list[int]  # ids of the tokens that came
    ended: Callable[[], None]  # called when the engine has ended it, whether the replies are read or not
    meter: TokenMeter | None = None  # of a job that a client asked for


class Worker:
    """One worker process. Owned by the pool; `start` once, `stream` many times, `close` once."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the model, for messages
        self.facts: Facts
        self.load_seconds = 0.0
        self.death = ""  # of what it died
        self._interrupted = False
        self._given_up = ""  # why it was killed
        self._pong: Pong | None = None
        self._peak = 0
        self.expected_bytes = 0  # resident soon: more was granted
        self.grow: Callable[[int], Awaitable[bool]] = always  # whether it may take so many bytes more
        self._grants: set[asyncio.Task[None]] = set()
        self._jobs: dict[int, Asked] = {}
        self._unanswered: dict[int, int] = {}  # bytes of jobs of which nothing has come yet
        self._ids = itertools.count()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None

    @property
    def asked(self) -> int:
        """Questions and jobs that it has not ended."""
        return len(self._jobs)

    @property
    def answering(self) -> list[TokenMeter]:
        """Of the clients' jobs that it has not ended."""
        return [asked.meter for asked in self._jobs.values() if asked.meter]

    def memory(self) -> tuple[int, int]:
        """Bytes resident now, and at most so far; 0 once it is gone."""
        try:
            process = psutil.Process(self._process.pid)
            resident = process.memory_info().rss
        except psutil.NoSuchProcess:
            return 0, self._peak
        self._peak = max(self._peak, resident, peak_resident(process.pid))
        return resident, self._peak

    async def start(
        self,
        load: Load,
        environment: Mapping[str, str],
        report: Callable[[float], None],
        inherited: IO[bytes] | None = None,
        patience: float | None = STUCK_SECONDS,
    ) -> None:
        """Raises Unavailable with the engine's own sentence when it cannot load, or when it says nothing for `patience`
        seconds; one with `retry_after` where not even a process can be had. The process keeps `inherited` open."""
        try:
            shortage.check_files()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # nothing that lies in the working directory is imported
                "-m",
                "enginehouse.runtimes.worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is the server's to answer
                pass_fds=[inherited.fileno()] if inherited else [],
            )
        except OSError as error:
            why = shortage.describe(error, "see the log")
            message = f"model '{self.name}' cannot be loaded: no process can be started for it: {why}"
            raise Unavailable(message, "model_load_failed", RETRY_SECONDS) from error
        self._tasks.append(asyncio.create_task(self._keep_stderr(), context=Context()))  # it is no request's
        try:
            self._write(frame(Start(load)))
            await self._ready(report, patience)
        except BaseException:
            self.close()
            raise
        self._watching = asyncio.create_task(self._watch(), context=Context())
        self._tasks += [asyncio.create_task(self._read(), context=Context()), self._watching]

    async def _ready(self, report: Callable[[float], None], patience: float | None) -> None:
        while True:
            try:
                received = await asyncio.wait_for(self._receive(), patience)
            except TimeoutError:
                self._give_up(f"its load made no progress for {patience:g} s")
                received = None
            match received:
                case Loading(fraction):
                    report(fraction)
                case Ready(facts, seconds):
                    self.facts, self.load_seconds = facts, seconds
                    return
                case LoadFailed(reason, needed) if needed:
                    raise NoMemory(f"model '{self.name}' cannot be loaded: {reason}", needed)
                case LoadFailed(reason):
                    raise Unavailable(f"model '{self.name}' cannot be loaded: {reason}", "model_load_failed")
                case None:
                    raise Unavailable(
                        f"model '{self.name}' cannot be loaded: {await self._cause_of_death()}", "model_load_failed"
                    )

    async def stream(
        self,
        job: Job,
        generated: list[int],
        ended: Callable[[], None] = lambda: None,
        meter: TokenMeter | None = None,
    ) -> AsyncGenerator[PromptProgress | Delta | Done, None]:
        """A PromptProgress when it is admitted, then what comes after the tokens in `generated`, to the answer's end;
        tokens whose deltas were given are added there. Closing the iterator early cancels the job in the engine. What
        nobody takes is kept: at most the answer; `ended` is called as soon as the engine has given it."""
        number, replies = self._open(generated, ended, meter)
        try:
            self._send(
                Submit(number, job.prompt, job.sampling, generated.copy(), job.echo, job.priority, job.request_id)
            )
            while True:
                items = [await replies.get()]
                while not replies.empty():
                    items.append(replies.get_nowait())
                for item in merged(items):
                    match item:
                        case Refusal():
                            raise refused(item)
                        case EngineFailed() | Unavailable():
                            raise item
                        case Done():
                            yield item
                            return
                        case PromptProgress() | Delta():
                            yield item
        finally:
            self._forget(number)

    async def embed(self, texts: list[str | list[int]], pooling: Pooling) -> Embedded:
        return await self._ask(lambda number: Embed(number, texts, pooling), Embedded)

    async def tokenize(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt as an answer to it would begin."""
        return (await self._ask(lambda number: Tokenize(number, prompt), Tokenized)).ids

    async def detokenize(self, ids: list[int]) -> str:
        return (await self._ask(lambda number: Detokenize(number, ids), Detokenized)).text

    async def _ask(self, question: Callable[[int], Embed | Tokenize | Detokenize], answer: type[R]) -> R:
        number, replies = self._open([], lambda: None)
        try:
            self._send(question(number))
            match await replies.get():
                case answer() as reply:
                    return reply
                case Refusal() as refusal:
                    raise refused(refusal)
                case (EngineFailed() | Unavailable()) as failure:
                    raise failure
                case other:
                    raise EngineFailed(
                        f"the engine answered with {type(other).__name__} where {answer.__name__} was due"
                    )
        finally:
            self._forget(number)

    def _open(
        self, generated: list[int], ended: Callable[[], None], meter: TokenMeter | None = None
    ) -> tuple[int, "asyncio.Queue[Item]"]:
        if self.death:
            raise WorkerDied(self.death)
        if self._interrupted:
            raise shutting_down()
        number, replies = next(self._ids), asyncio.Queue[Item]()
        self._jobs[number] = Asked(replies, generated, ended, meter)
        return number, replies

    def _forget(self, number: int) -> None:
        """Ends a job in the engine too, unless it has ended there."""
        self._unanswered.pop(number, None)
        if self._jobs.pop(number, None) and not self.death:
            self._write(frame(Cancel(number)))

    def _send(self, message: Submit | Embed | Tokenize | Detokenize) -> None:
        try:
            data = frame(message)
        except OverflowError as error:
            raise Refused("the request holds a whole number beyond 64 bits") from error
        if self._unanswered and sum(self._unanswered.values()) + len(data) > WAITING_BYTES:
            waiting = f"{sum(self._unanswered.values()) >> 20} MiB of requests wait for model '{self.name}' already"
            raise Busy(waiting, "queue_full", RETRY_SECONDS)
        self._unanswered[message.job] = len(data)
        self._write(data)

    def interrupt(self) -> None:
        """Ends what it is asked, and lets nobody ask it any more."""
        self._interrupted = True
        for asked in self._jobs.values():
            asked.replies.put_nowait(shutting_down())

    def close(self) -> None:
        """Ends the process: politely by closing its stdin, by force if it does not listen."""
        if self._watching:
            self._watching.cancel()
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

    async def _watch(self) -> None:
        watchdog = Watchdog()
        while True:
            self._pong = None
            self._write(frame(Ping()))
            await asyncio.sleep(PING_SECONDS)
            try:
                times = psutil.Process(self._process.pid).cpu_times()
            except psutil.NoSuchProcess:
                return
            if reason := watchdog.judge(Look(self._pong, times.user + times.system)):
                self._give_up(reason)
                return

    def _give_up(self, reason: str) -> None:
        log.error("%s: %s; it is killed", self.name, reason)
        self._given_up = reason
        if self._process.returncode is None:
            self._process.kill()

    async def _read(self) -> None:
        try:
            while message := await self._receive():
                self._deliver(message)
        except Exception as error:  # else all that wait for this worker would wait for ever
            self._give_up(f"what it said cannot be read: {error}")
        self.death = f"the engine of model '{self.name}' died: {await self._cause_of_death()}"
        for asked in self._jobs.values():
            asked.replies.put_nowait(WorkerDied(self.death))
        if self._watching:
            self._watching.cancel()

    def _deliver(self, message: ToServer) -> None:
        match message:
            case Pong():
                self._pong = message
            case Grow():
                answer = asyncio.create_task(self._grant(message))
                self._grants.add(answer)
                answer.add_done_callback(self._grants.discard)
            case Emit(tokens, deltas, dones, progress):
                self.expected_bytes = 0
                for number, one in progress:
                    if asked := self._jobs.get(number):
                        asked.replies.put_nowait(one)
                        if asked.meter:
                            asked.meter.note_progress(one)
                now = time.monotonic()
                for number, token in tokens:
                    if asked := self._jobs.get(number):
                        asked.generated.append(token)
                        if asked.meter:
                            asked.meter.note_token(now)
                for number, delta in deltas:
                    self._unanswered.pop(number, None)
                    if asked := self._jobs.get(number):
                        asked.replies.put_nowait(delta)
                for number, done in dones:
                    if (asked := self._jobs.get(number)) and asked.meter:
                        asked.meter.note_prompt()
                    self._end(number, done)
            case Failure(number, reason):
                self._end(number, EngineFailed(f"the engine of model '{self.name}' gave up: {reason}"))
            case Refusal(number) | Embedded(number) | Tokenized(number) | Detokenized(number):
                self._end(number, message)

    async def _grant(self, wanted: Grow) -> None:
        granted = await self.grow(wanted.bytes)
        if not self.death:
            self._write(frame(Granted(wanted.ask, granted)))

    def _end(self, number: int, last: Item) -> None:
        self._unanswered.pop(number, None)
        if asked := self._jobs.pop(number, None):
            asked.replies.put_nowait(last)
            asked.ended()

    async def _keep_stderr(self) -> None:
        assert self._process.stderr
        rest = b""
        while chunk := await self._process.stderr.read(LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[rest.rstrip(b"\r").rfind(b"\r") + 1 :][-LINE_BYTES:]
            self._note(lines)
        self._note([rest] if rest else [])

    def _note(self, lines: list[bytes]) -> None:
        for line in lines:
            self._stderr.append(shown(line).decode("utf-8", "replace").rstrip())
            log.info("%s: %s", self.name, self._stderr[-1])

    async def _cause_of_death(self) -> str:
        code = await self._process.wait()
        await asyncio.gather(self._tasks[0], return_exceptions=True)
        if self._given_up:
            return self._given_up
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"{cause}; it last wrote: {self._stderr[-1]}" if self._stderr else cause


async def always(_: int) -> bool:
    return True


def refused(refusal: Refusal) -> Refused:
    if refusal.context:
        return TooLong(refusal.context, refusal.tokens, refusal.at_least, refusal.param)
    return Refused(refusal.message, refusal.param, refusal.code)


def shown(line: bytes) -> bytes:
    """What a terminal shows of it at last: a progress bar writes itself over with carriage returns."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def peak_resident(pid: int) -> int:
    """Where the kernel keeps it, else 0."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return 0


def merged(items: list[Item]) -> list[Item]:
    """What came while nobody looked, with each run of text as one delta: a slow client gets fewer, larger events."""
    out = items[:1]
    for item in items[1:]:
        before = out[-1]
        if isinstance(item, Delta) and isinstance(before, Delta) and item.text and before.text:
            out[-1] = Delta(before.text + item.text, logprobs=before.logprobs + item.logprobs)
        elif isinstance(item, Delta) and isinstance(before, Delta) and (call := further(before, item)):
            out[-1] = Delta(tool_call=call, logprobs=before.logprobs + item.logprobs)
        else:
            out.append(item)
    return out


def further(before: Delta, item: Delta) -> ToolCall | None:
    """Two pieces of the same call's arguments as one."""
    first, second = before.tool_call, item.tool_call
    if first and second and not (first.name or second.name) and first.index == second.index:
        return ToolCall(first.index, arguments=first.arguments + second.arguments)
    return None
