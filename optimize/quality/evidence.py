"""What the gate has seen of an artifact so far, and whether that is enough to refuse it. numpy only."""

import math
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.config.schema import Limits
from enginehouse.optimize.artifact import Quality

if TYPE_CHECKING:
    import numpy as np

FEWEST = 8  # texts; what is judged by fewer is luck
WORST = 0.99  # of the places diverge no more than this one does: the worst of a hundred
WIDTH = 2.6  # standard errors to both sides: one in a hundred lies outside, were it looked at once


class Places(msgspec.Struct, frozen=True):
    """One text, place by place: (places,) each."""

    divergence: "np.ndarray[Any, Any]"  # nats
    sure: "np.ndarray[Any, Any]"  # the source is
    agrees: "np.ndarray[Any, Any]"  # both hold the same token to be the likeliest
    lost: "np.ndarray[Any, Any]"  # log-probability of the token that comes, the source's less the artifact's
    right: "np.ndarray[Any, Any]"  # the artifact holds the token that comes to be the likeliest
    source_right: "np.ndarray[Any, Any]"


class Evidence:
    def __init__(self, bar: Limits, has_answers: bool) -> None:
        """`has_answers`: the texts are answers that should be given, as in an eval.jsonl."""
        self._bar, self._has_answers, self._texts = bar, has_answers, list[Places]()

    def add(self, text: Places) -> None:
        self._texts.append(text)

    def is_bad(self) -> bool:
        """A figure misses the bar by more than chance would explain. That an artifact is good only all texts can show:
        what is seldom wrong is wrong in few of them."""
        return len(self._texts) >= FEWEST and any(self._misses(*figure) for figure in self._figures())

    def quality(self, of_texts: int, reference: str) -> Quality:
        import numpy as np

        divergence, agreement, perplexity, _, *accuracy = (
            self._mean(values, weights) for values, weights, _ in self._figures()
        )
        every = np.concatenate([text.divergence for text in self._texts])
        return Quality(
            round(max(divergence, 0.0), 6),  # rounding may leave a hair less than none
            round(max(float(np.quantile(every, WORST)), 0.0), 6),
            round(1 - agreement, 6),
            round(math.exp(perplexity), 6),
            round(1 - accuracy[0], 6) if accuracy else None,
            len(every),
            len(self._texts),
            of_texts,
            reference,
        )

    def _figures(self) -> "list[tuple[list[float], list[float], float]]":
        """Of each: its sum and what it is divided by for each text, and how large it may be."""
        bar, texts = self._bar, self._texts
        places = [float(len(text.sure)) for text in texts]
        figures = [
            ([float(text.divergence.sum()) for text in texts], places, bar.divergence),
            (
                [float((text.sure & ~text.agrees).sum()) for text in texts],
                [float(text.sure.sum()) for text in texts],
                1 - bar.agreement,
            ),
            ([float(text.lost.sum()) for text in texts], places, math.log(bar.perplexity)),
            ([float((text.divergence > bar.worst).sum()) for text in texts], places, 1 - WORST),
        ]
        if self._has_answers:
            right = [float(text.source_right.all()) for text in texts]
            lost = [was - float(text.right.all()) for was, text in zip(right, texts, strict=True)]
            figures.append((lost, right, 1 - bar.accuracy))
        return figures

    @staticmethod
    def _mean(values: list[float], weights: list[float]) -> float:
        return sum(values) / sum(weights) if sum(weights) else 0.0

    def _misses(self, values: list[float], weights: list[float], limit: float) -> bool:
        """Whether the mean is surely above the limit. Texts are drawn, not places: those of one text are alike."""
        mean, count, whole = self._mean(values, weights), len(values), sum(weights)
        if not whole:
            return False
        spread = sum((value - mean * weight) ** 2 for value, weight in zip(values, weights, strict=True))
        return mean - WIDTH * math.sqrt(count / (count - 1) * spread) / whole > limit
