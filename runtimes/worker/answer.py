"""From a model's bytes to what the client sees: UTF-8, stop strings, then content, reasoning and tool calls."""

import codecs
import time
from collections.abc import Callable, Sequence

import msgspec

from enginehouse.runtimes.contract import Delta, Done, Logprob, Scored, Token, Usage
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner, overlap, text


class Answer:
    """One job under way."""

    def __init__(self, prompt_tokens: int, output: "OutputParser", scores_end: bool) -> None:
        self.output = output
        self.scores_end = scores_end  # the token that ends the answer is among the log-probabilities
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = self.reasoning_tokens = self.cached_tokens = 0
        self.started = time.monotonic()
        self.first = 0.0
        self.logprobs: list[Logprob] = []  # of tokens whose delta has not come yet

    def take(self, token: Token) -> list[Delta]:
        if not self.first:
            self.first, self.cached_tokens = time.monotonic(), token.cached
        deltas = self.output.feed(token.text)
        if token.logprob is not None and (token.id >= 0 or self.scores_end):
            self.logprobs.append(Logprob(Scored(token.id, token.text, token.logprob), token.top))
        if token.id >= 0:
            self.completion_tokens += 1
            self.reasoning_tokens += self.output.reasoned
        return deltas

    def with_logprobs(self, deltas: list[Delta], last: bool) -> list[Delta]:
        if self.logprobs and (deltas or last):
            first, *rest = deltas or [Delta()]
            deltas = [msgspec.structs.replace(first, logprobs=self.logprobs), *rest]
            self.logprobs = []
        return deltas

    def done(self, finish: str) -> Done:
        usage = Usage(self.prompt_tokens, self.completion_tokens, self.cached_tokens, self.reasoning_tokens)
        reason = "tool_calls" if finish == "stop" and self.output.called else finish
        return Done(reason, usage, self.first - self.started, time.monotonic() - self.first, self.output.stopped)


Reader = Callable[[Scanner], Reading[None]]


def all_content(scanner: Scanner) -> Reading[None]:
    yield from scanner.until((), text)


class OutputParser:
    """One answer's text as it comes. Nothing here looks back further than the longest stop string or tag."""

    def __init__(self, stop: Sequence[str], read: Reader = all_content) -> None:
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
            at, self.met = min(found, key=lambda match: match[0])
            self._held = ""
            return text[:at]
        keep = max(overlap(text, s) for s in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        held, self._held = self._held, ""
        return held
