"""An answer as blocks, each a thought, text or a tool call: how the newer dialects show it, whole and streamed."""

import secrets
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from runtimes.contract import Delta, Done, Event, Logprob, Placed

Kind = Literal["thought", "text", "call"]


class Block:
    """One block as it grows."""

    def __init__(self, index: int, kind: Kind, name: str = "") -> None:
        self.index, self.kind, self.name = index, kind, name
        self.id = secrets.token_hex(12)
        self.pieces: list[str] = []  # of the thought, the text, or the call's arguments
        self.logprobs: list[Logprob] = []  # of text alone
        self.cut = False  # the answer ended for its length in here

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Opened(msgspec.Struct, frozen=True):
    block: Block


class Grew(msgspec.Struct, frozen=True):
    block: Block
    piece: str
    logprobs: list[Logprob]


class Closed(msgspec.Struct, frozen=True):
    block: Block


Step = Opened | Grew | Closed


class Blocks:
    """The blocks of one answer. At most one is open, the last."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open = False

    def feed(self, delta: Delta) -> list[Step]:
        steps: list[Step] = []
        if call := delta.tool_call:
            if call.name:
                self._begin("call", steps, call.name)
            if call.arguments:
                self._grow(call.arguments, [], steps)
        elif delta.reasoning:
            self._continue("thought", steps)
            self._grow(delta.reasoning, [], steps)
        elif delta.text:
            self._continue("text", steps)
            self._grow(delta.text, delta.logprobs, steps)
        elif delta.logprobs and self._open and self.all[-1].kind == "text":
            self._grow("", delta.logprobs, steps)
        return steps

    def end(self, done: Done) -> list[Step]:
        steps: list[Step] = []
        if self._open:
            self.all[-1].cut = done.finish_reason == "length"
            self._close(steps)
        return steps

    def _continue(self, kind: Kind, steps: list[Step]) -> None:
        if not self._open or self.all[-1].kind != kind:
            self._begin(kind, steps)

    def _begin(self, kind: Kind, steps: list[Step], name: str = "") -> None:
        if self._open:
            self._close(steps)
        self.all.append(Block(len(self.all), kind, name))
        self._open = True
        steps.append(Opened(self.all[-1]))

    def _grow(self, piece: str, logprobs: list[Logprob], steps: list[Step]) -> None:
        block = self.all[-1]
        block.pieces.append(piece)
        block.logprobs += logprobs
        steps.append(Grew(block, piece, logprobs))

    def _close(self, steps: list[Step]) -> None:
        self._open = False
        steps.append(Closed(self.all[-1]))


async def collect(events: AsyncIterator[Event]) -> tuple[list[Block], Done]:
    """The whole answer."""
    blocks = Blocks()
    async for event in events:
        match event:
            case Placed(again=True):
                blocks = Blocks()
            case Delta():
                blocks.feed(event)
            case Done():
                done = event
    blocks.end(done)
    return blocks.all, done
