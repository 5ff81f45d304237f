"""Server-sent events as bytes, and what another form of stream has in their place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

encode = msgspec.json.Encoder().encode


def comment(text: str) -> bytes:
    """On one line, whatever is said: the next would be read as an event's."""
    return f": {' '.join(text.split())}\n\n".encode()


def event(kind: str, fields: dict[str, Any]) -> bytes:
    """One that bears its name, within and without."""
    return b"event: " + kind.encode() + b"\ndata: " + encode({"type": kind, **fields}) + b"\n\n"


def events_of(part: bytes) -> list[bytes]:
    """Those that a part of a stream holds, without its comments."""
    return [event + b"\n\n" for event in part.split(b"\n\n") if event.startswith(b"event: ")]


class Framing(NamedTuple):
    """Of a stream: how a client is told what it may pass over."""

    media_type: str
    comment: Callable[[str], bytes]


EVENTS = Framing("text/event-stream", comment)
