"""The worker's end of the process that compiles constraints before the worker does, and may die of them."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from enginehouse.runtimes.contract import Constraint
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.grammar.matcher import param_of

CPU_SECONDS = 5  # of computing that a constraint may take, on all cores together
SECONDS = 20.0  # that it may take on a busy machine
START_SECONDS = 120.0
GROWN_BYTES = 512 << 20  # of compiled grammars, which xgrammar never forgets: then a new process
PROCESS = "enginehouse.runtimes.engines.openvino.trial_process"


class Order(msgspec.Struct, frozen=True):
    folder: str
    width: int  # of the logits


class Verdict(msgspec.Struct, frozen=True):
    ebnf: str = ""  # the constraint in xgrammar's words
    grown: int = 0  # bytes that the process takes more than before
    refused: str = ""  # why the constraint is
    param: str | None = None
    code: str | None = None


class Trial:
    """The process, begun when it is first needed and anew when it has ended or grown large."""

    def __init__(self, folder: Path, width: int) -> None:
        self._order = Order(str(folder), width)
        self._process: subprocess.Popen[bytes] | None = None
        self._grown = 0
        self._closed = False

    def passed(self, constraint: Constraint) -> Verdict:
        """Raises Refused for what cannot be enforced, or compiled in bounds."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        verdict = self._ask(constraint, SECONDS)
        if verdict is None:
            status = self._end()
            why = "it ran out of time or memory" if status == -signal.SIGKILL else died_of(status)
            reason = f"the constraint is too large or too complex for this model's engine: {why}; simplify it"
            raise Refused(reason, param_of(constraint), "invalid_constraint")
        self._grown += verdict.grown
        if self._grown > GROWN_BYTES:
            self._kill()
        if verdict.refused:
            raise Refused(verdict.refused, verdict.param, verdict.code)
        return verdict

    def close(self) -> None:
        self._closed = True
        self._kill()

    def _start(self) -> None:
        self._kill()
        self._grown = 0
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._closed or self._ask(self._order, START_SECONDS) is None:
            reason = f"the process that compiles constraints did not start: status {self._end()}; see the log"
            raise Refused(reason, None, "invalid_constraint")

    def _ask(self, message: Order | Constraint, seconds: float) -> Verdict | None:
        """None where it ends instead, or says nothing for so long."""
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except OSError:
            return None
        line, until = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(0, until - time.monotonic()))[0]:
                return None
            more = os.read(self._process.stdout.fileno(), 1 << 20)
            if not more:
                return None
            line += more
        return msgspec.json.decode(line, type=Verdict)

    def _end(self) -> int:
        """Its status; it is given a moment to end by itself."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        return self._kill()

    def _kill(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()
        with contextlib.suppress(BrokenPipeError), process:
            pass
        return process.wait()


def died_of(status: int) -> str:
    if status == -signal.SIGXCPU:
        return f"compiling it takes more than {CPU_SECONDS} s"
    return f"compiling it ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"
