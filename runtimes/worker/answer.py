"""From a model's bytes to what the client sees: UTF-8, stop strings, then content, reasoning and tool calls."""

import codecs
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from enginehouse.runtimes.contract import Delta, Done, Logprob, PromptProgress, Scored, Token, Usage
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner, text


class Answer:
    """One job under way."""

    def __init__(self, prompt_tokens: int, output: "OutputParser", scores_end: bool, request_id: str = "") -> None:
        self.output, self.request_id = output, request_id
        self.scores_end = scores_end  # the token that ends the answer is among the log-probabilities
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = self.reasoning_tokens = self.cached_tokens = 0
        self.accepted = self.rejected = 0  # guesses
        self.waited = 0.0  # as in Token
        self.started = time.monotonic()
        self.first = self.spoke = 0.0  # when its first token came; when last something to show did

    def take(self, token: Token) -> list[Delta]:
        if not self.first:
            self.first, self.cached_tokens = time.monotonic(), token.cached
            self.waited = token.waited
        logprob = None
        if token.logprob is not None and (token.text or self.scores_end):
            logprob = Logprob(Scored(token.id, token.text, token.logprob), token.top)
        if deltas := self.output.feed(token.text, logprob):
            self.spoke = time.monotonic()
        self.rejected += token.wrong
        if token.id >= 0:
            self.completion_tokens += 1
            self.accepted += token.guessed
            self.reasoning_tokens += self.output.reasoned
        return deltas

    def progress(self, read: tuple[int, int], tier: str = "") -> PromptProgress:
        """`read`: as `Engine.read` says it, of what may be the prompt and a part of the answer."""
        held, cached = (min(tokens, self.prompt_tokens) for tokens in read)
        return PromptProgress(self.prompt_tokens, held, cached, time.monotonic() - self.started, tier)

    def end(self) -> list[Delta]:
        """What was held back in case more came."""
        deltas = self.output.end()
        unshown = self.output.unshown()
        return [*deltas, Delta(logprobs=unshown)] if unshown and self.scores_end else deltas

    def done(self, finish: str) -> Done:
        usage = Usage(
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.reasoning_tokens,
            self.accepted,
            self.rejected,
        )
        reason = "tool_calls" if finish == "stop" and self.output.called else finish
        times = self.first - self.started, time.monotonic() - self.first
        return Done(reason, usage, *times, self.output.stopped, self.waited)


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
        self._decoded = self._read = 0  # letters
        self._begun = ""  # of a token that is not shown yet
        self._places: deque[Place] = deque()  # of tokens that no content was shown of yet

    @property
    def called(self) -> bool:
        """At least one tool call came out."""
        return self._scanner.calls > 0

    @property
    def reasoned(self) -> bool:
        """The piece fed last was, at least in part, reasoning."""
        return self._scanner.reasoned

    def feed(self, piece: bytes, logprob: Logprob | None = None) -> list[Delta]:
        """Content comes with the log-probabilities of the tokens that it consists of."""
        begin, decoded = self._decoded, self._decode(piece)
        self._decoded += len(decoded)
        if logprob:  # of a letter that is not complete yet a token has its share
            self._places.append(Place(begin, max(self._decoded, begin + 1), logprob))
        return self._deltas(self._whole_tokens(self._stop.feed(decoded)))

    def end(self) -> list[Delta]:
        """What was held back in case more came."""
        self._scanner.ended = True
        return self._deltas(self._begun + self._stop.feed(self._decode(b"", True)) + self._stop.end())

    def unshown(self) -> list[Logprob]:
        """Of tokens at the end that show nothing; those behind a stop string are no part of the answer."""
        return [] if self.stopped else [place.logprob for place in self._places]

    def _whole_tokens(self, piece: str) -> str:
        """What can be shown, less the beginning of a token whose end may be that of a stop string: which letters of it
        the answer has, and so its log-probability, is known only then."""
        text = self._begun + piece
        shown = self._read + len(text)
        if not self._stop.met:
            shown = next((place.begin for place in reversed(self._places) if place.begin < shown < place.end), shown)
        self._begun = text[shown - self._read :]
        return text[: shown - self._read]

    def _deltas(self, piece: str) -> list[Delta]:
        self.stopped = self._stop.met
        self._scanner.held += piece
        self._read += len(piece)
        self._scanner.reasoned = False
        deltas = []
        while delta := next(self._reading, None):
            if delta.text and self._places:
                end = self._read - len(self._scanner.held)
                delta = msgspec.structs.replace(delta, logprobs=self._within(end - len(delta.text), end))
            deltas.append(delta)
        return deltas

    def _within(self, begin: int, end: int) -> list[Logprob]:
        """Log-probabilities of what was just shown; what lies before it was thoughts, calls or marks."""
        found = []
        while self._places and self._places[0].begin < end:
            place = self._places.popleft()
            if place.end > begin:
                across = self.stopped and place.end > self._read
                found.append(cut(place.logprob, self._read - place.begin) if across else place.logprob)
        return found


class Place(msgspec.Struct, frozen=True):
    """Where in the text a token stands."""

    begin: int
    end: int
    logprob: Logprob


def cut(logprob: Logprob, letters: int) -> Logprob:
    """Of a token that lies across the beginning of a stop string: as the letters before it, so that the tokens of an
    answer are its content."""
    token = logprob.token
    shown = token.text.decode("utf-8", "replace")[:letters].encode()
    return msgspec.structs.replace(logprob, token=msgspec.structs.replace(token, text=shown))


class StopStrings:
    """Ends an answer with the first stop string that is complete, the longest of those that end there. An automaton
    (Aho-Corasick): what a letter costs does not grow with their number."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.met = ""
        self._held = ""
        self._start = self._state = automaton(stop)

    def feed(self, text: str) -> str:
        """What can be shown: all text before the stop string, less what may be the beginning of one."""
        if self.met:
            return ""
        whole = self._held + text
        for at, letter in enumerate(text, len(self._held) + 1):
            self._state = self._state.after(letter)
            if self._state.met:
                self.met, self._held = self._state.met, ""
                return whole[: at - len(self.met)]
        shown = len(whole) - self._state.length
        self._held = whole[shown:]
        return whole[:shown]

    def end(self) -> str:
        held, self._held, self._state = self._held, "", self._start
        return held


class Begun:
    """The longest beginning of a stop string that the text ends with."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.met = ""  # the longest stop string that the text ends with
        self.further: dict[str, Begun] = {}
        self.shorter: Begun | None = None  # the next longest; None for the empty one

    def after(self, letter: str) -> "Begun":
        state = self
        while letter not in state.further and state.shorter:
            state = state.shorter
        return state.further.get(letter, state)


def automaton(stop: Sequence[str]) -> Begun:
    start = Begun(0)
    for word in filter(None, stop):
        state = start
        for letter in word:
            state = state.further.setdefault(letter, Begun(state.length + 1))
        state.met = word
    states = deque([start])
    while states:
        state = states.popleft()
        for letter, longer in state.further.items():
            longer.shorter = state.shorter.after(letter) if state.shorter else start
            longer.met = longer.met or longer.shorter.met
            states.append(longer)
    return start
