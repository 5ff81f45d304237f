"""Speculation: guesses of what an answer says next, read from what its text says already (prompt lookup) or its request
predicts, and how many of them are worth computing. The engine chooses each token as it would without them, so that an
answer is the same."""

import math

NGRAM = 3  # tokens that must agree before a guess
LONGEST = 16  # tokens that are compared, to tell a passage that is copied from a chance
MOST = 16  # guesses at a time
INDEXED_AT_ONCE = 4096  # tokens, in one step
PRIOR_WEIGHT = 3.0  # guesses that the first estimate counts for
FADING = 0.95  # of what was learned, with each guess that is judged
FORGETTING = 0.995  # of it, with each that is not tried: what did not pay may do so later in a text
FIRST = 4  # guesses, where what one costs is not known yet
RECENT = 0.95  # the weight of a step beside that of the next one


class StepCost:
    """What one more row in a step takes: a line through what the last steps took."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0

    def note(self, rows: int, seconds: float) -> None:
        self._weight = RECENT * self._weight + 1
        self._rows = RECENT * self._rows + rows
        self._seconds = RECENT * self._seconds + seconds
        self._squares = RECENT * self._squares + rows * rows
        self._products = RECENT * self._products + rows * seconds

    def of_row(self, rows: int) -> float:
        """Of a step of so many, the share of its time that one more would add, times `rows`: what the row must bring in
        tokens to be worth it. NaN where steps of one size only were seen."""
        each = self.row_seconds
        if math.isnan(each):
            return math.nan
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        step = mean_seconds + each * (rows - mean_rows)
        return rows * each / max(step, 1e-9)

    @property
    def row_seconds(self) -> float:
        spread = self._weight * self._squares - self._rows * self._rows
        if spread <= 1e-6 * self._squares:
            return math.nan
        return max(0.0, (self._weight * self._products - self._rows * self._seconds) / spread)


class Lookup:
    """Where the last few tokens stood before in a text that grows at its end."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # the place behind each run of NGRAM tokens, the last one
        self._indexed = NGRAM

    def place(self, tokens: list[int]) -> int | None:
        """Behind the last place where the text's end stood before; None where there is none, or not all of the text
        was looked at yet."""
        end = min(len(tokens), self._indexed + INDEXED_AT_ONCE)
        for at in range(self._indexed, end):
            self._after[tuple(tokens[at - NGRAM : at])] = at
        self._indexed = max(self._indexed, end)
        return self._after.get(tuple(tokens[-NGRAM:])) if end == len(tokens) else None


def agreeing(tokens: list[int], place: int) -> int:
    """How many tokens before a place are those at the end, up to LONGEST."""
    length, end = NGRAM, len(tokens)
    while length < min(LONGEST, place) and tokens[place - 1 - length] == tokens[end - 1 - length]:
        length += 1
    return length


class Odds:
    """How likely a guess is right if those before it are."""

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._right = self._tried = 0.0

    @property
    def right(self) -> float:
        return (self._right + self._prior * PRIOR_WEIGHT) / (self._tried + PRIOR_WEIGHT)

    def learn(self, right: int, wrong: int) -> None:
        self._right, self._tried = FADING * self._right + right, FADING * self._tried + right + wrong

    def forget(self) -> None:
        self._right, self._tried = FORGETTING * self._right, FORGETTING * self._tried


class Guesser:
    """Of one answer."""

    def __init__(self, predicted: list[int]) -> None:
        self._lookup = Lookup()
        self._predicted, self._text, self._taken = predicted, list[int](), 0
        self._odds = {NGRAM: Odds(0.4), 6: Odds(0.7), LONGEST: Odds(0.9)}  # by how many tokens agree, at least
        self._used = self._odds[NGRAM]  # for the last guesses

    def guess(self, tokens: list[int], most: int, cost: float) -> list[int]:
        """What may follow, as far as it is worth `cost`: what a row must bring, in tokens."""
        self._take(tokens)
        place = self._lookup.place(self._text)
        if place is None or most <= 0:
            return []
        length = agreeing(self._text, place)
        self._used = self._odds[max(least for least in self._odds if least <= length)]
        count = FIRST if math.isnan(cost) else worthwhile(self._used.right, cost)
        if not count:
            self._used.forget()
        return self._text[place : place + min(count, most)]

    def _take(self, tokens: list[int]) -> None:
        """The prediction is read as if it stood behind the prompt, whose end comes once more after it."""
        if self._predicted and not self._taken:
            self._text, self._taken = tokens + self._predicted + tokens[-NGRAM:], len(tokens)
        self._text += tokens[self._taken :]
        self._taken = len(tokens)

    def learn(self, guessed: int, right: int) -> None:
        self._used.learn(right, int(right < guessed))


def worthwhile(right: float, cost: float) -> int:
    """Guesses of which even the last brings more than it costs."""
    if cost >= right:
        return 0
    return MOST if cost <= right**MOST else int(math.log(cost) / math.log(right))
