"""A process that compiles constraints before the worker does, and may die of them: both ends of it. Lines of JSON: what
it is to load, then a constraint each; back comes a Verdict for each, the first once it is ready."""

import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from enginehouse.runtimes.contract import Constraint
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.grammar.matcher import param_of

CPU_SECONDS = 2  # of computing that a constraint may take, on all cores together
SECONDS = 10.0  # that it may take on a busy machine
START_SECONDS = 120.0
BYTES = 2 << 30  # of address space that a constraint may take
GROWN_BYTES = 512 << 20  # grown by so much, the process makes way for a new one: xgrammar forgets no grammar
STACK_BYTES = 4 << 20  # half of what a thread of the worker has


class Order(msgspec.Struct, frozen=True):
    folder: str
    width: int  # of the logits


class Verdict(msgspec.Struct, frozen=True):
    ebnf: str = ""
    refused: str = ""  # why the constraint is
    param: str | None = None
    code: str | None = None


# --- the worker's end ---


class Trial:
    """The process, begun when it is first needed and anew when it has ended."""

    def __init__(self, folder: Path, width: int) -> None:
        self._order = Order(str(folder), width)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def ebnf(self, constraint: Constraint) -> str:
        """What the constraint is in xgrammar's words, which can be compiled in bounds."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        verdict = self._ask(constraint, SECONDS)
        if verdict is None:
            status = self._end()
            why = "it ran out of time or memory" if status == -signal.SIGKILL else died_of(status)
            reason = f"the constraint is too large or too complex for this model's engine: {why}; simplify it"
            raise Refused(reason, param_of(constraint), "invalid_constraint")
        if verdict.refused:
            raise Refused(verdict.refused, verdict.param, verdict.code)
        return verdict.ebnf

    def close(self) -> None:
        self._closed = True
        self._end()

    def _start(self) -> None:
        self._end()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._closed or self._ask(self._order, START_SECONDS) is None:
            raise RuntimeError(f"the process that tries constraints did not start: status {self._end()}; see the log")

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
        """Its status."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        with process:
            try:
                return process.wait(0.5 if process.poll() is None and not self._closed else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()


def died_of(status: int) -> str:
    if status == -signal.SIGXCPU:
        return f"compiling it takes more than {CPU_SECONDS} s"
    return f"compiling it ended with {signal.Signals(-status).name if status < 0 else f'status {status}'}"


# --- the process ---


def main() -> None:
    out = os.dup(1)  # libraries print to stdout as they like; it is stderr from here on
    os.dup2(2, 1)
    lines = queue.SimpleQueue[bytes]()
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=serve, args=(lines, out), daemon=True).start()
    while line := sys.stdin.buffer.readline():
        lines.put(line)
    os._exit(0)  # the worker is gone, or wants no more


def serve(lines: "queue.SimpleQueue[bytes]", out: int) -> None:
    def send(verdict: Verdict) -> None:
        data = memoryview(msgspec.json.encode(verdict) + b"\n")
        while data:
            data = data[os.write(out, data) :]

    try:
        trier = Trier(msgspec.json.decode(lines.get(), type=Order))
        process = psutil.Process()
        ready = process.memory_info()
        set_limit(resource.RLIMIT_CORE, 0)
        if sys.platform == "linux":
            set_limit(resource.RLIMIT_AS, ready.vms + BYTES)
        send(Verdict())
        while process.memory_info().rss < ready.rss + GROWN_BYTES:
            constraint: Constraint = msgspec.json.decode(lines.get(), type=Constraint)
            set_limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + CPU_SECONDS)
            send(trier.verdict(constraint))
    finally:
        os._exit(1)


def set_limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))


class Trier:
    def __init__(self, order: Order) -> None:
        from enginehouse.runtimes.decoding.tokenizer import Vocabulary
        from enginehouse.runtimes.engines.openvino import constraints, graphs

        graphs.silence()
        import openvino
        import openvino_genai

        vocabulary = Vocabulary(Path(order.folder))
        tokenizer = graphs.own_tokenizer(openvino, openvino_genai, vocabulary, order.width)
        self._genai, self._ebnf, self._structured = openvino_genai, constraints.ebnf, constraints.structured
        self._strict = vocabulary.grammar_compiler(order.width)
        self._compiler = constraints.Compiler(openvino, openvino_genai, tokenizer, order.width)

    def verdict(self, constraint: Any) -> Verdict:
        try:
            self._strict.matcher(constraint)  # for xgrammar ignores what it does not know
            ebnf = self._ebnf(constraint)
            self._compiler.compile(self._structured(self._genai, constraint, ebnf), param_of(constraint))
        except Refused as error:
            return Verdict(refused=error.message, param=error.param, code=error.code)
        return Verdict(ebnf)


if __name__ == "__main__":
    main()
