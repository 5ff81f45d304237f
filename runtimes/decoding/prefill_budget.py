"""How many tokens of prompts a step may read beside those who answer: reading a long one stretches the time between
their tokens, and is bounded by that."""

import math
from collections.abc import Sequence

import msgspec

RECENT = 0.3  # the weight of the last step among all before
LEAST_TOKENS = 8  # of a prompt, however slow the host: it must end some day
LEAST_SHARE = 0.25  # for reading, of what a step of answers alone takes, however many they are
APART_SECONDS = 0.5  # that those who answer may stand still for a step that only reads


class Reading(msgspec.Struct, frozen=True):
    tokens: int
    apart: bool = False  # in a step without answers


class PrefillBudget:
    def __init__(self, chunk: int, stretch: float, apart: int = 0) -> None:
        """`chunk`: tokens that a step reads at most. `stretch`: times that a step of one answer alone takes, which one
        that reads a prompt may take. What is left of that for reading is as many times more as prompts are read: those
        who wait for their first token would else wait for each other's whole answers. `apart`: tokens from which a step
        that only reads them is cheaper than reading beside answers; 0: never. What is left is saved up for it then."""
        self._chunk, self._stretch, self._least_apart = chunk, stretch, min(apart, chunk)
        self.answers: dict[int, float] = {}  # seconds of a step of answers alone, by how many they are
        self._beside = math.nan  # seconds of a token read beside answers
        self._apart = math.nan  # the same in a step of its own
        self._saved = 0.0  # seconds of steps of answers since the last one that read

    def reading(self, answering: int, unread: Sequence[int]) -> Reading:
        """Of prompts that still have so many tokens each, beside so many who answer; none where a step of answers alone
        is still to be timed."""
        if not answering:
            return Reading(self._chunk, apart=True)
        beside = self._answers(answering)
        if math.isnan(beside) or not unread:
            return Reading(0)
        left = max(self._stretch * self._answers(min(self.answers)) - beside, LEAST_SHARE * beside) * len(unread)
        slow = self._least_apart * self._apart > APART_SECONDS  # not where that is unknown
        if self._least_apart and not slow:
            return self._saved_up(left, self._saved / beside, sum(unread))
        if math.isnan(self._beside):
            return Reading(min(self._chunk, LEAST_TOKENS))
        return Reading(max(min(self._chunk, LEAST_TOKENS), min(self._chunk, int(left / self._beside))))

    def _saved_up(self, left: float, steps: float, unread: int) -> Reading:
        """`left`: seconds for reading, of each of so many steps."""
        enough = min(self._least_apart, unread)
        if steps * left < enough * self._apart:
            return Reading(0)
        each = 0 if math.isnan(self._apart) else int(left / self._apart)
        return Reading(min(self._chunk, max(enough, each)), apart=True)

    def note(self, answering: int, read: int, seconds: float) -> None:
        """What a step took."""
        if not read:
            self.answers[answering] = mixed(self.answers.get(answering, math.nan), seconds)
            self._saved += seconds
            return
        self._saved = 0.0
        if not answering:
            if read >= self._least_apart:  # fewer take longer each
                self._apart = mixed(self._apart, seconds / read)
        elif not math.isnan(beside := self._answers(answering)):
            self._beside = mixed(self._beside, max(seconds - beside, 1e-9) / read)

    def _answers(self, answering: int) -> float:
        """Seconds of a step of so many, or of as few less as were timed."""
        timed = max((count for count in self.answers if count <= answering), default=0)
        return self.answers.get(timed, math.nan)


def mixed(before: float, now: float) -> float:
    return now if math.isnan(before) else before + RECENT * (now - before)
