"""Work in a child process, both ends of it: an order goes to the child's stdin, how far it is and what came of it comes
back on its stdout, each a line of JSON. Stdin stays open for as long as the parent lives, and the child no longer."""

import asyncio
import contextlib
import math
import os
import sys
import threading
import traceback
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import psutil

from enginehouse.optimize import shortage
from enginehouse.optimize.artifact import CannotBuild, Report

MESSAGE_LETTERS = 200  # of what a tool says of its failure
LOOK_SECONDS, HELD_SECONDS = 5.0, 60.0
BUSY = 0.1  # of a processor: who computes more is not waiting
HELD = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_DISK_SLEEP)


class StageProgress(msgspec.Struct, tag="progress", frozen=True):
    stage: str
    fraction: float  # of the stage, 0 to 1


class Failed(msgspec.Struct, tag="failed", frozen=True):
    message: str
    environment: bool  # as in CannotBuild


Result = TypeVar("Result", bound=msgspec.Struct)

# --- the parent's end ---


async def run(
    module: str,
    order: msgspec.Struct,
    result: type[Result],
    report: Report,
    name: str,
    environment: Mapping[str, str] | None = None,
    patience: float = math.inf,
) -> Result:
    """What `python -m module` makes of the order; `name`: the child's in messages, `environment`: if not ours,
    `patience`: seconds that it may compute without getting any further.

    Raises the child's CannotBuild, and one where it cannot be started or dies on the way. Given up, it ends the child.
    """
    try:
        shortage.check_files()
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # nothing that lies in the working directory is imported
            "-m",
            module,
            stdin=PIPE,
            stdout=PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to answer
        )
    except OSError as error:
        why = shortage.describe(error, "see the log")
        raise CannotBuild(f"{name} cannot be started: {why}", environment=True) from error
    assert child.stdin and child.stdout
    last: Result | Failed | None = None
    watch = Watch(child.pid, patience)
    watching = asyncio.create_task(watch.end_if_stuck())
    try:
        with contextlib.suppress(ConnectionError):  # it has died already: its status says so below
            child.stdin.write(msgspec.json.encode(order) + b"\n")
            await child.stdin.drain()
        async for line in child.stdout:
            last = heard(line, result, report)
            watch.note_progress()
    finally:
        child.stdin.close()  # the child ends at that, whatever it is doing
        status = await child.wait()
        watching.cancel()
    match last:
        case None if watch.stuck:
            did, of_environment = watch.stuck
            raise CannotBuild(f"{name} {did} and was ended", of_environment)
        case None:
            reason = f"{name} ended with status {status} in the middle of its work; see the log"
            raise CannotBuild(reason, environment=status < 0)  # killed: not the fault of what it worked on
        case Failed(message, of_environment):
            raise CannotBuild(message, of_environment)
    return last


class Watch:
    """Over a process and what it has started. One that waits for a lock or a network is left alone."""

    def __init__(self, pid: int, patience: float) -> None:
        self._pid, self._patience = pid, patience
        self._idle_seconds = self._busy_seconds = 0.0  # since it was last seen to get further
        self.stuck: tuple[str, bool] | None = None  # what it was ended for, and whether the environment is to blame

    def note_progress(self) -> None:
        self._busy_seconds = 0.0

    async def end_if_stuck(self) -> None:
        """Kills them once one of them is stopped, or waits for a disk that does not answer, or all their computing
        leads nowhere."""
        before = -1.0
        while self.stuck is None:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                tree = [psutil.Process(self._pid), *psutil.Process(self._pid).children(recursive=True)]
                spent = sum(sum(process.cpu_times()[:2]) for process in tree)
                held = any(process.status() in HELD for process in tree)
            except psutil.NoSuchProcess:
                if not psutil.pid_exists(self._pid):
                    return
                continue
            self._idle_seconds = self._idle_seconds + LOOK_SECONDS if held and spent == before else 0.0
            self._busy_seconds += LOOK_SECONDS if spent - before > LOOK_SECONDS * BUSY else 0.0
            self.stuck = self._verdict()
            before = spent
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _verdict(self) -> tuple[str, bool] | None:
        if self._idle_seconds >= HELD_SECONDS:
            return f"stood still for {HELD_SECONDS:.0f} s", True
        if self._busy_seconds >= self._patience:
            return f"computed for {self._patience:.0f} s without getting any further", False
        return None


def run_blocking(
    module: str,
    order: msgspec.Struct,
    result: type[Result],
    report: Report,
    name: str,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """The same where no event loop runs."""
    return asyncio.run(run(module, order, result, report, name, environment))


def heard(line: bytes, result: type[Result], report: Report) -> Result | Failed | None:
    """None for progress, which is passed on."""
    message: StageProgress | Failed | Result = msgspec.json.decode(line, type=StageProgress | Failed | result)
    if isinstance(message, StageProgress):
        report(message.stage, message.fraction)
        return None
    return message


# --- the child's end ---


def carry_out(orders: Any, work: Callable[[Any, Report], msgspec.Struct]) -> None:
    """A child's whole main: `work` is given its order, one of the type `orders`, and gives the result."""
    send = sender()
    with os.fdopen(0, "rb", closefd=False) as stdin:
        order = msgspec.json.decode(stdin.readline(), type=orders)
    end_with_parent()
    try:
        send(work(order, lambda stage, fraction: send(StageProgress(stage, fraction))))
    except CannotBuild as error:
        send(Failed(str(error), error.environment))
    except Exception as error:  # the boundary: tools raise what they like
        traceback.print_exc()
        first = next(iter(str(error).strip().splitlines()), "")
        send(Failed(f"{type(error).__name__}: {first[:MESSAGE_LETTERS]}; see the log", environment=False))


def sender() -> Callable[[msgspec.Struct], None]:
    """Writes to what was stdout; tools print there as they like, and it is stderr from here on."""
    out = os.dup(1)
    os.dup2(2, 1)

    def send(message: msgspec.Struct) -> None:
        os.write(out, msgspec.json.encode(message) + b"\n")

    return send


def end_with_parent() -> None:
    """Watches stdin, which the parent keeps open for as long as it lives."""
    threading.Thread(target=watch, daemon=True).start()


def watch() -> None:
    while os.read(0, 1 << 16):  # not through sys.stdin, whose lock a thread may not hold when the interpreter ends
        pass
    os._exit(1)
