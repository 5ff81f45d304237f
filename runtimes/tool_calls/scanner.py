"""The text of an answer as it comes, and how to read it: generators that yield deltas, and None to wait for more.

Nothing is looked at twice but what may still become a tag or the head of a call.
"""

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from enginehouse.runtimes.contract import Delta, ToolCall

T = TypeVar("T")
Reading = Generator[Delta | None, None, T]


class Scanner:
    def __init__(self) -> None:
        self.held = ""  # came and was not shown yet
        self.ended = False
        self.calls = 0
        self.reasoned = False  # the piece that came last was, at least in part, reasoning
        self.trims = False  # line breaks beside a tag are the tag's, not the text's

    def skip(self, count: int) -> None:
        self.held = self.held[count:]

    def until(self, tags: Sequence[str], show: Callable[[str], Delta], reasoning: bool = False) -> Reading[str]:
        """Shows the text before the first of `tags` and goes past it; the tag, "" if the answer ends before. What is
        shown has just been gone past: that is how log-probabilities find it."""
        while True:
            self.reasoned = self.reasoned or (reasoning and bool(self.held))
            if self.trims:
                self.held = self.held.lstrip("\n")
                self.trims = not self.held
            if found := [(at, tag) for tag in tags if (at := self.held.find(tag)) >= 0]:
                at, tag = min(found)
                before = self.held[:at].rstrip("\n")
                self.skip(len(before))
                if before:
                    yield show(before)
                self.skip(at + len(tag) - len(before))
                self.trims = True
                return tag
            if self.ended:
                rest = self.held
                if reasoning or self.calls:
                    rest = rest.rstrip("\n" if reasoning else None)
                self.skip(len(rest))
                if rest:
                    yield show(rest)
                self.held = ""
                return ""
            shown = self.held
            if tags:  # the beginning of one, and line breaks before it, may be the tag's
                shown = shown[: len(shown) - max(overlap(shown, tag) for tag in tags)].rstrip("\n")
            self.skip(len(shown))
            if shown:
                yield show(shown)
            yield None

    def starts(self, tags: Sequence[str]) -> Reading[str]:
        """Goes past a tag that comes next, and the blanks before it; "" and nothing else if none does."""
        while True:
            begun = self.held.lstrip()
            if tag := next((tag for tag in tags if begun.startswith(tag)), ""):
                self.held = begun[len(tag) :]
                self.trims = True
                return tag
            if self.ended or not any(tag.startswith(begun) for tag in tags):
                return ""
            yield None

    def match(self, pattern: re.Pattern[str], most: int) -> Reading[re.Match[str] | None]:
        """Goes past what matches next; None if nothing does within `most` characters."""
        while not (found := pattern.match(self.held)) and len(self.held) < most and not self.ended:
            yield None
        if found:
            self.skip(found.end())
        return found

    def taken(self, tag: str) -> Reading[str]:
        """All text up to `tag`, with it; all there is if the answer ends before."""
        parts: list[str] = []
        while (at := self.held.find(tag)) < 0 and not self.ended:
            parts.append(self.held[: len(self.held) - overlap(self.held, tag)])
            self.skip(len(parts[-1]))
            yield None
        parts.append(self.held if at < 0 else self.held[: at + len(tag)])
        self.skip(len(parts[-1]))
        self.trims = True
        return "".join(parts)

    def value(self, show: Callable[[str], Delta | None], depth: int = 0) -> Reading[bool]:
        """Shows text as it comes up to where its brackets close; False if the answer ends before. `depth`: of brackets
        that are open already."""
        brackets = Brackets(depth)
        while True:
            end = brackets.close(self.held)
            piece = self.held if end < 0 else self.held[:end]
            self.skip(len(piece))
            if piece and (delta := show(piece)):
                yield delta
            if end >= 0:
                return True
            if self.ended:
                return False
            yield None

    def call(self, name: str) -> tuple[Delta, Callable[[str], Delta]]:
        """The first piece of the next call, and what makes the pieces of its arguments."""
        index = self.calls
        self.calls += 1
        return Delta(tool_call=ToolCall(index, name)), lambda text: Delta(tool_call=ToolCall(index, arguments=text))

    def back(self, text: str) -> Delta:
        """What was taken for the beginning of a call and is none, as text."""
        self.trims = False
        return Delta(text=text)


def text(piece: str) -> Delta:
    return Delta(text=piece)


def thought(piece: str) -> Delta:
    return Delta(reasoning=piece)


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`, short of the whole tag."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


class Brackets:
    """Follows brackets and strings through pieces of text: JSON's, unless others are named."""

    def __init__(self, depth: int = 0, opening: str = "{[", closing: str = "}]", quotes: str = '"') -> None:
        self._depth, self._opening, self._closing, self._quotes = depth, opening, closing, quotes
        self._quote = ""  # that closes the string
        self._escaped = False

    def close(self, text: str) -> int:
        """Where the first of all open brackets closes: the index after it, -1 if not in this piece."""
        for at, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quote:
                self._escaped = letter == "\\"
                self._quote = "" if letter == self._quote else self._quote
            elif letter in self._quotes:
                self._quote = letter
            elif letter in self._opening:
                self._depth += 1
            elif letter in self._closing:
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        return -1
