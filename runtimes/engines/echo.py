"""The engine without a model: answers with the last message, a byte a token. The pattern for every other engine.

A last message with <tool_call>{"name": …, "arguments": …}</tool_call> in it is so answered with that call, where its
request has tools: a test can say what the model is to call.
"""

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
# A choice of one meets them all but the last: nothing holds an answer to a tool's form but who writes the message.
FEATURES = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "tools")


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For trying out what clients see when an engine breaks."""

    fails_on: str = ""  # the engine dies of an answer that holds this


class Echo:
    def __init__(self, load: Load) -> None:
        self._fails_on = msgspec.convert(load.options, Options).fails_on.encode()
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

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def make_ready(self, constraint: Constraint) -> Pieces[None]:
        yield

    def add(self, job: int, ids: Sequence[int], sampling: Sampling, priority: Priority = "interactive") -> None:
        if ids:
            check_tokens(ids, sampling, self.facts.vocabulary)
        room = self.facts.context_length - len(ids)
        self._running[job] = bytes(ids), min(sampling.max_tokens or room, room)

    def step(self) -> list[Token]:
        return [self._advance(job) for job in list(self._running)[: self.facts.slots]]

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
