"""Server-sent events as bytes."""

from typing import Any

import msgspec

encode = msgspec.json.Encoder().encode


def comment(text: str) -> bytes:
    """On one line, whatever is said: the next would be read as an event's."""
    return f": {' '.join(text.split())}\n\n".encode()


def event(kind: str, fields: dict[str, Any]) -> bytes:
    """One that bears its name, within and without."""
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"
