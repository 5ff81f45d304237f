"""From a model's bytes to what the client sees: UTF-8, stop strings, then content, reasoning and tool calls."""

import codecs
import json
from collections.abc import Sequence

from runtimes.contract import Delta, ToolCall

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"


class Output:
    """One answer's text as it comes. Nothing here looks back further than the longest stop string or tag."""

    def __init__(self, stop: Sequence[str], reasoning: bool, thinking: bool, tools: bool) -> None:
        self.stopped = ""  # the stop string that was met: the rest is not wanted
        self.called = False  # at least one tool call came out
        self.reasoned = False  # the piece fed last was, at least in part, reasoning
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = StopStrings(stop)
        self._split = Split(reasoning, thinking, tools)

    def feed(self, piece: bytes) -> list[Delta]:
        return self._deltas(self._stop.feed(self._decode(piece)))

    def end(self) -> list[Delta]:
        """What was held back in case more came."""
        text = self._stop.feed(self._decode(b"", True)) + self._stop.end()
        return self._deltas(text) + self._split.end()

    def _deltas(self, text: str) -> list[Delta]:
        self.stopped = self._stop.met
        deltas = self._split.feed(text)
        self.called = self._split.calls > 0
        self.reasoned = self._split.reasoned
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


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`, short of the whole tag."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


class Split:
    """Qwen's and Hermes' form: <think>…</think> first, then content with <tool_call>{json}</tool_call> in it."""

    def __init__(self, reasoning: bool, thinking: bool, tools: bool) -> None:
        self.calls = 0
        self.reasoned = False
        self._tools = tools
        self._held = ""
        self._body: list[str] = []  # of the tool call being read
        self._state = self._think if thinking else self._begin if reasoning else self._content
        self._trim = thinking  # line breaks beside a tag are the tag's, not the text's

    def feed(self, text: str) -> list[Delta]:
        self.reasoned = False
        self._held += text
        deltas: list[Delta] = []
        while self._held and self._state(deltas):
            pass
        return deltas

    def end(self) -> list[Delta]:
        """An open tool call was never finished: the client gets its text rather than nothing."""
        held, self._held = self._held, ""
        if self._state == self._think:
            held = held.rstrip("\n")
            return [Delta(reasoning=held)] if held else []
        if self._state == self._call:
            held = CALL + "".join(self._body) + held
        elif self.calls:
            held = held.rstrip()
        return [Delta(text=held)] if held else []

    # Each state consumes from _held, appends deltas, and says whether it changed state with text left to look at.

    def _begin(self, deltas: list[Delta]) -> bool:
        text = self._held.lstrip()
        if text.startswith(THINK):
            self._go(self._think, text[len(THINK) :])
        elif THINK.startswith(text):
            return False
        else:
            self._state = self._content
        return True

    def _think(self, deltas: list[Delta]) -> bool:
        self.reasoned = True
        return self._until(END_THINK, self._content, deltas, "reasoning")

    def _content(self, deltas: list[Delta]) -> bool:
        if self._tools:
            return self._until(CALL, self._call, deltas, "text")
        self._show(self._trimmed(self._held), deltas, "text")
        self._held = ""
        return False

    def _call(self, deltas: list[Delta]) -> bool:
        at = self._held.find(END_CALL)
        if at < 0:
            keep = overlap(self._held, END_CALL)
            self._body.append(self._held[: len(self._held) - keep])
            self._held = self._held[len(self._held) - keep :]
            return False
        body = "".join(self._body) + self._held[:at]
        self._body.clear()
        if call := tool_call(body):
            name, arguments = call
            deltas.append(Delta(tool_call=ToolCall(self.calls, name)))
            deltas.append(Delta(tool_call=ToolCall(self.calls, arguments=arguments)))
            self.calls += 1
        else:
            deltas.append(Delta(text=CALL + body + END_CALL))
        self._go(self._content, self._held[at + len(END_CALL) :])
        return True

    def _until(self, tag: str, after: "object", deltas: list[Delta], field: str) -> bool:
        """Shows text up to `tag`; holds back what may begin it, and line breaks that may stand before it."""
        text = self._trimmed(self._held)
        at = text.find(tag)
        if at >= 0:
            self._show(text[:at].rstrip("\n"), deltas, field)
            self._go(after, text[at + len(tag) :])
            return True
        keep = overlap(text, tag)
        shown = text[: len(text) - keep].rstrip("\n")
        self._show(shown, deltas, field)
        self._held = text[len(shown) :]
        return False

    def _trimmed(self, text: str) -> str:
        if self._trim:
            text = text.lstrip("\n")
            self._trim = not text
        return text

    def _go(self, state: "object", rest: str) -> None:
        self._state, self._held, self._trim = state, rest, True  # type: ignore[assignment]

    def _show(self, text: str, deltas: list[Delta], field: str) -> None:
        if text:
            deltas.append(Delta(text=text) if field == "text" else Delta(reasoning=text))


def tool_call(body: str) -> tuple[str, str] | None:
    """Name and arguments."""
    try:
        call = json.loads(body)
        return str(call["name"]), json.dumps(call.get("arguments") or {}, ensure_ascii=False)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
