"""A process that compiles constraints and may die of them. Lines of JSON: an Order first, then a constraint each; back
comes a Verdict for each, the first once it is ready."""

import os
import queue
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec
import psutil

from enginehouse.runtimes.contract import Constraint
from enginehouse.runtimes.decoding.tokenizer import Vocabulary
from enginehouse.runtimes.engines.openvino import constraints, graphs
from enginehouse.runtimes.engines.openvino.trial import CPU_SECONDS, Order, Verdict
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.grammar.matcher import param_of

BYTES = 2 << 30  # of address space that a constraint may take
STACK_BYTES = 4 << 20  # half of what a thread of the worker has


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
        before = ready.rss
        while True:
            constraint: Constraint = msgspec.json.decode(lines.get(), type=Constraint)
            set_limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + CPU_SECONDS)
            verdict = trier.verdict(constraint)
            now = process.memory_info().rss
            send(msgspec.structs.replace(verdict, grown=max(0, now - before)))
            before = now
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def set_limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))


class Trier:
    def __init__(self, order: Order) -> None:
        graphs.silence()
        import openvino
        import openvino_genai

        vocabulary = Vocabulary(Path(order.folder))
        tokenizer = graphs.own_tokenizer(openvino, openvino_genai, vocabulary, order.width)
        self._genai = openvino_genai
        self._strict = vocabulary.grammar_compiler(order.width)
        self._compiler = constraints.Compiler(openvino, openvino_genai, tokenizer, order.width)

    def verdict(self, constraint: Any) -> Verdict:
        try:
            self._strict.matcher(constraint)  # for xgrammar ignores what it does not know
            ebnf = constraints.ebnf(constraint)
            self._compiler.compile(constraints.structured(self._genai, constraint, ebnf), param_of(constraint))
        except Refused as error:
            return Verdict(refused=error.message, param=error.param, code=error.code)
        return Verdict(ebnf)


if __name__ == "__main__":
    main()
