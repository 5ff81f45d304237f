"""The engine without a model: answers with the last message, a byte a token. The pattern for every other engine.

A last message with <tool_call>{"name": …, "arguments": …}</tool_call> in it is so answered with that call, where its
request has tools: a test can say what the model is to call.
"""

import time
from collections.abc import Callable, Sequence

import msgspec

from enginehouse.runtimes.contract import (
    Constraint,
    Engine,
    Facts,
    Load,
    Local,
    Logprob,
    Pieces,
    Pooling,
    Priority,
    Sampling,
    Token,
    check_tokens,
)

# Agents let a system message follow what the user says. The comment tells in which form this engine calls tools.
TEMPLATE = (
    "{# <tool_call> #}{% set said = messages | rejectattr('role', 'equalto', 'system') | list %}"
    "{{ (said or messages)[-1].content }}"
)
STEP_SECONDS = 0.05  # of one that reads a prompt slowly
# A choice of one meets them all but the last: nothing holds an answer to a tool's form but who writes the message.
FEATURES = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "tools")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For trying out what clients see when an engine breaks, or is slow."""

    fails_on: str = ""  # the engine dies of an answer that holds this
    prefill_rate: float = 0.0  # tokens of a prompt read in a second; 0: all at once
    decode_rate: float = 0.0  # tokens of each answer in a second; 0: as fast as they go


class Echo:
    def __init__(self, load: Load) -> None:
        options = msgspec.convert(load.options, Options)
        self._fails_on, self._rate = options.fails_on.encode(), options.prefill_rate
        self._decode_seconds = 1 / options.decode_rate if options.decode_rate else 0.0
        self.facts = Facts(
            context_length=load.context,
            slots=load.slots,
            vocabulary=256,
            chat_template=TEMPLATE,
            bos="",
            eos="",
            device="cpu",
            features=FEATURES,
            longest_token=1,
        )
        self._running: dict[int, tuple[bytes, int]] = {}  # job -> what is left to say, tokens still allowed
        self._read: dict[int, float] = {}  # job -> tokens of its prompt, while it is read

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def make_ready(self, constraint: Constraint) -> Pieces[None]:
        yield

    def add(self, job: int, ids: Sequence[int], sampling: Sampling, priority: Priority = "interactive") -> None:
        if ids:
            check_tokens(ids, sampling, self.facts.vocabulary)
        room = self.facts.context_length - len(ids)
        self._running[job] = bytes(ids), min(sampling.max_tokens or room, room)
        if self._rate:
            self._read[job] = 0.0

    def step(self) -> list[Token]:
        jobs = list(self._running)[: self.facts.slots]
        reading = next((job for job in jobs if job in self._read), None)
        if reading is not None:
            time.sleep(STEP_SECONDS)
            self._read[reading] += self._rate * STEP_SECONDS
            if self._read[reading] >= len(self._running[reading][0]):
                del self._read[reading]
        elif self._decode_seconds:
            time.sleep(self._decode_seconds)
        return [self._advance(job) for job in jobs if job not in self._read]

    def read(self, job: int) -> tuple[int, int] | None:
        return (int(self._read[job]), 0) if job in self._read else None

    def _advance(self, job: int) -> Token:
        rest, allowed = self._running[job]
        if self._fails_on and self._fails_on in rest:
            raise RuntimeError("options.echo.fails_on came up")
        finish = "stop" if len(rest) <= 1 else "length" if allowed == 1 else None
        if finish:
            del self._running[job]
        else:
            self._running[job] = rest[1:], allowed - 1
        return Token(job, rest[0] if rest else -1, rest[:1], finish)

    def text(self, token: int) -> bytes:
        return bytes([token])

    def remove(self, job: int) -> None:
        self._running.pop(job, None)
        self._read.pop(job, None)

    def embed(self, ids: Sequence[int], pooling: Pooling) -> Pieces[list[float]]:
        raise NotImplementedError

    def score(self, ids: Sequence[int], top: int) -> Pieces[list[Logprob]]:
        raise NotImplementedError

    def rest(self) -> bool:
        return False

    def close(self) -> None:
        pass


def load(load: Load, report: Callable[[float], None]) -> Engine:
    return Echo(load)


RUNTIME = Local(name="echo", format="echo", unavailable=lambda: None, load=load, options=Options, features=FEATURES)
