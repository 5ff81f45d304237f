"""From a model's bytes to what the client sees: UTF-8, stop strings, then content, reasoning and tool calls."""

import codecs
from collections.abc import Callable, Sequence

from enginehouse.runtimes.contract import Delta
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner, overlap, text

Reader = Callable[[Scanner], Reading[None]]


def plain(scanner: Scanner) -> Reading[None]:
    """All of it is content."""
    yield from scanner.until((), text)


class Output:
    """One answer's text as it comes. Nothing here looks back further than the longest stop string or tag."""

    def __init__(self, stop: Sequence[str], read: Reader = plain) -> None:
        self.stopped = ""  # the stop string that was met: the rest is not wanted
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = StopStrings(stop)
        self._scanner = Scanner()
        self._reading = read(self._scanner)

    @property
    def called(self) -> bool:
        """At least one tool call came out."""
        return self._scanner.calls > 0

    @property
    def reasoned(self) -> bool:
        """The piece fed last was, at least in part, reasoning."""
        return self._scanner.reasoned

    def feed(self, piece: bytes) -> list[Delta]:
        return self._deltas(self._stop.feed(self._decode(piece)))

    def end(self) -> list[Delta]:
        """What was held back in case more came."""
        self._scanner.ended = True
        return self._deltas(self._stop.feed(self._decode(b"", True)) + self._stop.end())

    def _deltas(self, piece: str) -> list[Delta]:
        self.stopped = self._stop.met
        self._scanner.held += piece
        self._scanner.reasoned = False
        deltas = []
        while delta := next(self._reading, None):
            deltas.append(delta)
        return deltas


class StopStrings:
    def __init__(self, stop: Sequence[str]) -> None:
        self.met = ""  # the one that came up first
        self._stop = [s for s in stop if s]
        self._held = ""

    def feed(self, text: str) -> str:
        """What can be shown: all text before the earliest stop string, less what may be the beginning of one."""
        if self.met or not self._stop:
            return "" if self.met else text
        text = self._held + text
        found = [(at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            at, self.met = min(found, key=lambda place: place[0])
            self._held = ""
            return text[:at]
        keep = max(overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        held, self._held = self._held, ""
        return held
