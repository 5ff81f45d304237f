"""Work in a child process, both ends of it: an order goes to the child's stdin, how far it is and what came of it comes
back on its stdout, each a line of JSON. Stdin stays open for as long as the parent lives, and the child no longer."""

import asyncio
import contextlib
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
) -> Result:
    """What `python -m module` makes of the order; `name`: the child's in messages, `environment`: if not ours.

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
    watching = asyncio.create_task(end_if_held(child.pid))
    try:
        with contextlib.suppress(ConnectionError):  # it has died already: its status says so below
            child.stdin.write(msgspec.json.encode(order) + b"\n")
            await child.stdin.drain()
        async for line in child.stdout:
            last = heard(line, result, report)
    finally:
        child.stdin.close()  # the child ends at that, whatever it is doing
        status = await child.wait()
        watching.cancel()
    match last:
        case None if watching.done() and not watching.cancelled() and watching.result():
            raise CannotBuild(f"{name} stood still for {HELD_SECONDS:.0f} s and was ended", environment=True)
        case None:
            reason = f"{name} ended with status {status} in the middle of its work; see the log"
            raise CannotBuild(reason, environment=status < 0)  # killed: not the fault of what it worked on
        case Failed(message, of_environment):
            raise CannotBuild(message, of_environment)
    return last


async def end_if_held(pid: int) -> bool:
    """Kills a process and what it has started once one of them is stopped, or waits for a disk that does not answer;
    whether that was so. One that waits for a lock or a network is left alone."""
    held, before = 0.0, -1.0
    while held < HELD_SECONDS:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            spent = sum(sum(process.cpu_times()[:2]) for process in tree)
            still = any(process.status() in HELD for process in tree)
        except psutil.NoSuchProcess:
            if not psutil.pid_exists(pid):
                return False
            continue
        held, before = (held + LOOK_SECONDS if still and spent == before else 0.0), spent
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return True


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
