"""An answer as blocks of content, each a thought, text or a tool call: what every API shows, whole and streamed."""

import secrets
from collections.abc import Sequence
from typing import Literal

import msgspec

from enginehouse.runtimes.contract import Assigned, Delta, Done, Logprob, PromptProgress, Usage

Kind = Literal["thought", "text", "call"]


class Block:
    """One block as it grows."""

    def __init__(self, index: int, kind: Kind, number: int, name: str = "") -> None:
        self.index, self.kind, self.name = index, kind, name
        self.number = number  # among the blocks of its kind
        self.id = secrets.token_hex(12)
        self.pieces: list[str] = []  # of the thought, the text, or the call's arguments
        self.logprobs: list[Logprob] = []
        self.cut = False  # the answer ended for its length in here

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class BlockStart(msgspec.Struct, frozen=True):
    block: Block
    logprobs: Sequence[Logprob]  # of a call's name


class BlockDelta(msgspec.Struct, frozen=True):
    block: Block
    piece: str
    logprobs: Sequence[Logprob]


class BlockStop(msgspec.Struct, frozen=True):
    block: Block


class HiddenTokens(msgspec.Struct, frozen=True):
    """Tokens that show in no block, such as the marks around a call."""

    logprobs: Sequence[Logprob]


# PromptProgress: how far a prompt is read; Usage: so far, for who wants it counted; Assigned: another engine goes on
Step = BlockStart | BlockDelta | BlockStop | HiddenTokens | PromptProgress | Usage | Assigned | Done


class Content:
    """The blocks of one answer. At most one is open, the last."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.logprobs: list[Logprob] = []  # of all tokens
        self._open: Block | None = None

    def text(self, kind: Kind) -> str:
        return "".join(block.text for block in self.blocks if block.kind == kind)

    def feed(self, delta: Delta) -> list[Step]:
        self.logprobs += delta.logprobs
        if call := delta.tool_call:
            if call.name:
                return self._begin("call", call.name, delta.logprobs)
            return self._grow("call", call.arguments, delta.logprobs)
        if delta.reasoning:
            return self._grow("thought", delta.reasoning, delta.logprobs)
        if delta.text or (delta.logprobs and self._open and self._open.kind == "text"):
            return self._grow("text", delta.text, delta.logprobs)
        return [HiddenTokens(delta.logprobs)]

    def end(self, done: Done) -> list[Step]:
        if self._open:
            self._open.cut = done.finish_reason == "length"
        return [*self._close(), done]

    def _grow(self, kind: Kind, piece: str, logprobs: list[Logprob]) -> list[Step]:
        steps: list[Step] = []
        block = self._open
        if block is None or block.kind != kind:
            steps = self._begin(kind)
            block = self.blocks[-1]
        block.pieces.append(piece)
        block.logprobs += logprobs
        steps.append(BlockDelta(block, piece, logprobs))
        return steps

    def _begin(self, kind: Kind, name: str = "", logprobs: Sequence[Logprob] = ()) -> list[Step]:
        steps = self._close()
        number = sum(block.kind == kind for block in self.blocks)
        self._open = Block(len(self.blocks), kind, number, name)
        self.blocks.append(self._open)
        return [*steps, BlockStart(self._open, logprobs)]

    def _close(self) -> list[Step]:
        block, self._open = self._open, None
        return [BlockStop(block)] if block else []
