"""How many tokens of prompts a step may read beside those who answer: reading a long one stretches the time between
their tokens, and is bounded by that."""

import math

RECENT = 0.3  # the weight of the last step among all before
LEAST_TOKENS = 8  # of a prompt, however slow the host: it must end some day
LEAST_SHARE = 0.25  # for reading, of what a step of answers alone takes, however many they are


class PrefillBudget:
    def __init__(self, chunk: int, stretch: float) -> None:
        """`chunk`: tokens that a step reads at most. `stretch`: times that a step of one answer alone takes, which one
        that reads a prompt may take. What is left of that for reading is as many times more as prompts are read: those
        who wait for their first token would else wait for each other's whole answers."""
        self._chunk, self._stretch = chunk, stretch
        self.answers: dict[int, float] = {}  # seconds of a step of answers alone, by how many they are
        self._token = math.nan  # seconds of a token read

    def tokens(self, answering: int, reading: int = 1) -> int:
        """To be read of so many prompts beside so many who answer; none where a step of answers alone is still to be
        timed."""
        if not answering:
            return self._chunk
        beside = self._answers(answering)
        if math.isnan(beside):
            return 0
        if math.isnan(self._token):
            return min(self._chunk, LEAST_TOKENS)
        left = max(self._stretch * self._answers(min(self.answers)) - beside, LEAST_SHARE * beside)
        fitting = left * reading / self._token
        return max(min(self._chunk, LEAST_TOKENS), min(self._chunk, int(fitting)))

    def note(self, answering: int, read: int, seconds: float) -> None:
        """What a step took."""
        if not read:
            self.answers[answering] = mixed(self.answers.get(answering, math.nan), seconds)
            return
        beside = self._answers(answering) if answering else 0.0
        if not math.isnan(beside):
            self._token = mixed(self._token, max(seconds - beside, 1e-9) / read)

    def _answers(self, answering: int) -> float:
        """Seconds of a step of so many, or of as few less as were timed."""
        timed = max((count for count in self.answers if count <= answering), default=0)
        return self.answers.get(timed, math.nan)


def mixed(before: float, now: float) -> float:
    return now if math.isnan(before) else before + RECENT * (now - before)
