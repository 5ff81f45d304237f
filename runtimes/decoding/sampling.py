"""Chooses the next token from one row of logits, for engines that leave that to us. numpy only."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.runtimes.contract import Logprob, Sampling, Scored
from enginehouse.runtimes.errors import ConstraintFailed
from enginehouse.runtimes.grammar.matcher import Matcher

if TYPE_CHECKING:
    import numpy as np

GREEDY_BELOW = 1e-5  # temperature; dividing by less overflows 32-bit logits
NEGLIGIBLE = 30.0  # a logit so far below the best has e^-30 of its weight; a vocabulary of them adds up to nothing


class Choice(msgspec.Struct, frozen=True):
    """What was chosen, and the log-probabilities asked for."""

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Sampler:
    """One answer's way of choosing. The order is the reference implementation's: bias and penalties, constraint,
    temperature, top_k, top_p, min_p."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], ends: Sequence[int], matcher: Matcher | None = None
    ) -> None:
        """`ends`: ids that end this answer, barred until min_tokens."""
        import numpy as np

        self._s = sampling
        self._matcher = matcher
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed & (2**64 - 1))
        self._barred = np.array(sorted(ends), np.int64)
        self._bias = np.array([*sampling.logit_bias], np.int64), np.array([*sampling.logit_bias.values()], np.float32)
        self._generated = 0
        self._counts: dict[int, int] = {}  # of generated tokens
        self._seen = np.unique(np.array(prompt, np.int64)) if sampling.repetition_penalty != 1 else None

    def choose(self, logits: "np.ndarray[Any, Any]") -> Choice:
        """`logits`: float32, (vocabulary,); overwritten. Raises ConstraintFailed where nothing may follow."""
        count = self._s.logprobs
        if count is None:
            return Choice(self._pick(self._adjusted(logits)))
        raw = logits.copy()
        return with_logprobs(self._pick(self._adjusted(logits)), raw, count)

    def accept(self, token: int) -> bool:
        """Notes a token of the answer; True when a constraint admits nothing more."""
        self._generated += 1
        if self._s.frequency_penalty or self._s.presence_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._seen is not None and token not in self._seen:
            import numpy as np

            self._seen = np.append(self._seen, token)
        return self._matcher.accept(token) if self._matcher else False

    def close(self) -> None: ...

    def _adjusted(self, logits: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        import numpy as np

        s = self._s
        if s.logit_bias:
            np.add.at(logits, self._bias[0], self._bias[1])
        if self._seen is not None:
            seen = logits[self._seen]
            logits[self._seen] = np.where(seen > 0, seen / s.repetition_penalty, seen * s.repetition_penalty)
        if self._counts:
            ids = np.fromiter(self._counts.keys(), np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            logits[ids] -= s.frequency_penalty * counts + s.presence_penalty
        if self._generated < s.min_tokens:
            logits[self._barred] = -np.inf
        if self._matcher:
            self._matcher.forbid(logits)
        return logits

    def _pick(self, logits: "np.ndarray[Any, Any]") -> int:
        import numpy as np

        s = self._s
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise ConstraintFailed("no token may follow: the logits are all -inf or not numbers")
        if s.temperature < GREEDY_BELOW:
            return best
        ids = np.flatnonzero(logits > logits[best] - NEGLIGIBLE * s.temperature)
        values = logits[ids]
        if 0 < s.top_k < len(ids):
            kept = np.argpartition(-values, s.top_k - 1)[: s.top_k]
            ids, values = ids[kept], values[kept]
        weights = np.exp((values - logits[best]) / s.temperature, dtype=np.float64)
        if s.top_p < 1:
            order = np.argsort(-weights)
            total = np.cumsum(weights[order])
            kept = order[: int(np.searchsorted(total, s.top_p * total[-1])) + 1]
            ids, weights = ids[kept], weights[kept]
        if s.min_p > 0:
            kept = weights >= s.min_p  # the best one's weight is 1
            ids, weights = ids[kept], weights[kept]
        total = np.cumsum(weights)
        return int(ids[min(int(np.searchsorted(total, self._random.random() * total[-1], "right")), len(ids) - 1)])


def with_logprobs(token: int, logits: "np.ndarray[Any, Any]", count: int) -> Choice:
    """What was chosen, by the logits as the model gave them, with the `count` likeliest."""
    logprob_of = log_probabilities(logits)
    top = likeliest(logits, count, logprob_of) if count else ()
    return Choice(token, float(logprob_of(float(logits[token]))), top)


def log_probabilities(logits: "np.ndarray[Any, Any]") -> Any:
    """A function from a logit of this row to its log-probability."""
    import numpy as np

    best = float(logits.max())
    normalizer = best + math.log(float(np.exp(logits - best, dtype=np.float32).sum(dtype=np.float64)))
    return lambda logit: logit - normalizer


def scored(
    logits: "np.ndarray[Any, Any]", tokens: Sequence[int], count: int, text: Callable[[int], bytes]
) -> list[Logprob]:
    """How likely each token was by the logits before it, float32 (tokens, vocabulary), and the `count` likeliest."""
    out = []
    for row, token in zip(logits, tokens, strict=True):
        one = with_logprobs(token, row, count)
        assert one.logprob is not None
        own = Scored(token, text(token), one.logprob)
        out.append(Logprob(own, tuple(Scored(id, text(id), logprob) for id, logprob in one.top)))
    return out


def likeliest(logits: "np.ndarray[Any, Any]", count: int, logprob_of: Any) -> list[tuple[int, float]]:
    """The `count` likeliest ids with their log-probabilities, best first."""
    import numpy as np

    count = min(count, len(logits))
    ids = np.argpartition(-logits, count - 1)[:count]
    ids = ids[np.argsort(-logits[ids])]
    return [(int(id), logprob_of(float(logits[id]))) for id in ids]
