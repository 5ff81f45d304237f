"""A child process that reports on stdout, whatever its tools print there, and ends with its parent."""

import os
import threading
from collections.abc import Callable
from typing import Any

import msgspec


def reports() -> Callable[[bytes], None]:
    """Writes a line to what was stdout; tools print there as they like, and it is stderr from here on."""
    out = os.dup(1)
    os.dup2(2, 1)

    def send(line: bytes) -> None:
        os.write(out, line + b"\n")

    return send


def begin(order: Any) -> tuple[Any, Callable[[msgspec.Struct], None]]:
    """The order of this type that came on stdin, and what sends structs to who gave it."""
    send_line = reports()
    with os.fdopen(0, "rb", buffering=0, closefd=False) as orders:
        given = msgspec.json.decode(orders.readline(), type=order)
    end_with_parent()
    return given, lambda report: send_line(msgspec.json.encode(report))


def end_with_parent() -> None:
    """Watches stdin, which the parent keeps open for as long as it lives."""
    threading.Thread(target=watch, daemon=True).start()


def watch() -> None:
    while os.read(0, 1 << 16):  # not through sys.stdin, whose lock a thread may not hold when the interpreter ends
        pass
    os._exit(1)
