"""Chooses tokens for mlx_lm's BatchGenerator, on the device."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from enginehouse.runtimes.decoding.jobs import Running
from enginehouse.runtimes.decoding.sampling import GREEDY_BELOW
from enginehouse.runtimes.errors import ConstraintFailed
from enginehouse.runtimes.grammar.matcher import Matcher

ODD = 0x9E3779B97F4A7C15  # spreads seeds over 64 bits, so that those of neighbouring positions do not meet


class State:
    """What is kept for a job, also while it waits to be read again."""

    def __init__(self, seed: int | None, matcher: Matcher | None) -> None:
        self.seed = random.getrandbits(64) if seed is None else seed
        self.matcher = matcher
        self.accepted = 0  # generated tokens the matcher knows of
        self.complete = False  # the matcher admits nothing more
        self.stuck: int | None = None  # the generated token that the matcher could not be asked about
        self.why_stuck = ""
        self.rows: dict[int, Any] = {}  # logits by generated token, where log-probabilities are wanted
        self.uid = -1  # BatchGenerator's name of it
        self.unread = 0  # tokens of the prompt


def choosing(running: Running[State], vocabulary: int) -> tuple[Callable[[Any], Any], list[Callable[[Any, Any], Any]]]:
    """A sampler and logits processors for BatchGenerator, which calls the processors first."""
    from mlx_lm.sample_utils import greedy_sampler

    chooser = Chooser(running, vocabulary)
    if chooser.plain:
        return greedy_sampler, []  # the same object for all, so that they are one batched call
    return chooser.choose, [chooser.adjust]


class Chooser:
    """One answer's way of choosing, on the device. The order is the reference implementation's: bias and penalties,
    constraint, temperature, top_k, top_p, min_p. It is asked for one token more than is ever delivered, for the next
    step is begun before this one is looked at; and it must not raise, for that tears the KV of all others. So it holds
    nothing that a job needs to go on after a preemption: randomness comes from seed and position alone."""

    def __init__(self, running: Running[State], vocabulary: int) -> None:
        import mlx.core as mx

        self._running, self._state, s = running, running.state, running.sampling
        self._position = running.generated - 1  # of the token being chosen, once adjust was called for it
        self._greedy = s.temperature < GREEDY_BELOW
        self._bias = scatter(vocabulary, s.logit_bias) if s.logit_bias else None
        self._barred = scatter(vocabulary, dict.fromkeys(running.ends, -float("inf"))) if s.min_tokens else None
        self._seen = self._counts = None
        if s.repetition_penalty != 1:
            self._seen = scatter(vocabulary, dict.fromkeys(running.tokens, 1.0)) > 0
        if s.frequency_penalty or s.presence_penalty:
            self._counts = scatter(vocabulary, Counter(running.tokens[running.prompt :]))
            self._counted = running.generated
        self._infinity = mx.array(-float("inf"))
        self._vocabulary = vocabulary
        adjusted = s.logit_bias or s.min_tokens or s.logprobs is not None or running.state.matcher
        self.plain = self._greedy and not adjusted and self._seen is None and self._counts is None

    def adjust(self, context: Any, logits: Any) -> Any:
        """`context`: int32, (prompt and generated tokens,); `logits`: float32, (1, vocabulary)."""
        import mlx.core as mx

        s, self._position = self._running.sampling, self._position + 1
        if s.logprobs is not None:
            self._state.rows[self._position] = logits
        if self._bias is not None:
            logits = logits + self._bias
        if self._seen is not None:
            self._seen[context[-1:]] = True
            punished = mx.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty)
            logits = mx.where(self._seen, punished, logits)
        if self._counts is not None:
            if self._position > self._counted:
                self._counts = self._counts.at[context[-1:]].add(1.0)
            logits = logits - s.frequency_penalty * self._counts - s.presence_penalty * (self._counts > 0)
        if self._barred is not None and self._position < s.min_tokens:
            logits = logits + self._barred
        return self._constrained(context, logits) if self._state.matcher else logits

    def choose(self, logprobs: Any) -> Any:
        """`logprobs`: float32, (1, vocabulary), of what adjust gave. The token's id: (1,)."""
        import mlx.core as mx

        s = self._running.sampling
        if self._greedy:
            return logprobs.argmax(-1)
        values, ids = logprobs[0] / s.temperature, None
        if 0 < s.top_k < self._vocabulary:
            ids = mx.argpartition(-values, s.top_k - 1)[: s.top_k]
            values = values[ids]
        if s.top_p < 1:
            order = mx.argsort(-values)
            values, ids = values[order], order if ids is None else ids[order]
            weights = mx.softmax(values)
            values = mx.where(mx.cumsum(weights) - weights < s.top_p, values, self._infinity)
        if s.min_p > 0:
            values = mx.where(values >= values.max() + math.log(s.min_p), values, self._infinity)
        key = mx.random.key((self._state.seed * ODD + self._position) & (2**64 - 1))
        at = mx.random.categorical(values, key=key)
        return (at if ids is None else ids[at])[None]

    def _constrained(self, context: Any, logits: Any) -> Any:
        import mlx.core as mx
        import numpy as np

        state, ends = self._state, self._running.ends
        if state.complete or state.stuck is not None:
            return logits
        assert state.matcher
        mask = np.zeros(self._vocabulary, np.float32)
        state.why_stuck = "no token may follow: the constraint leaves none"
        try:
            if self._position > state.accepted:
                state.accepted = self._position
                token = int(context[-1].item())
                state.complete = token in ends or state.matcher.accept(token)
                if state.complete:
                    return logits
            state.matcher.forbid(mask)
        except ConstraintFailed as error:
            mask[:] = -np.inf
            state.why_stuck = str(error)
        if self._position < self._running.sampling.min_tokens:
            mask[list(ends)] = -np.inf
        if not np.isfinite(mask).any():
            state.stuck = self._position
            return logits
        return logits + mx.array(mask)


def scatter(size: int, values: Mapping[int, float]) -> Any:
    """An array of zeros but for these."""
    import mlx.core as mx
    import numpy as np

    row = np.zeros(size, np.float32)
    row[list(values)] = list(values.values())
    return mx.array(row)
