"""What is guessed of a text, and when that pays."""

import math

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.decoding.speculation import (
    INDEXED_AT_ONCE,
    LONGEST,
    MOST,
    NGRAM,
    Guesser,
    Lookup,
    Odds,
    StepCost,
    agreeing,
    worthwhile,
)

texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


@given(text=texts, more=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8))
def test_a_lookup_finds_the_last_place_where_the_end_of_the_text_stood_before(
    text: list[int], more: list[list[int]]
) -> None:
    lookup = Lookup()
    for part in [[], *more]:
        text = text + part
        end = text[-NGRAM:]
        before = [at for at in range(NGRAM, len(text)) if text[at - NGRAM : at] == end]
        place = lookup.place(text)
        assert place == (before[-1] if before and len(text) >= NGRAM else None)
        if place:
            length = agreeing(text, place)
            assert NGRAM <= length <= LONGEST and text[place - length : place] == text[len(text) - length :]


def test_a_long_prompt_is_looked_at_in_parts() -> None:
    text, lookup = [*range(3 * INDEXED_AT_ONCE), 5, 6, 7], Lookup()
    found = [lookup.place(text) for _ in range(4)]
    assert found == [None, None, 8, 8]


@given(right=st.floats(0.01, 0.99), cost=st.floats(0.001, 2))
def test_the_last_guess_brings_what_it_costs_and_one_more_would_not(right: float, cost: float) -> None:
    count = worthwhile(right, cost)
    assert count == 0 or right**count >= cost * (1 - 1e-9)
    assert count == MOST or right ** (count + 1) <= cost * (1 + 1e-9)


@given(base=st.floats(1e-4, 1), row=st.floats(1e-5, 1), steps=st.lists(st.integers(1, 30), min_size=2, max_size=50))
def test_the_cost_of_a_row_is_found_from_steps_of_several_sizes(base: float, row: float, steps: list[int]) -> None:
    cost = StepCost()
    for rows in steps:
        cost.note(rows, base + row * rows)
    found, true = cost.of_row(4), 4 * row / (base + 4 * row)
    assert math.isnan(found) if len(set(steps)) == 1 else math.isclose(found, true, rel_tol=1e-3, abs_tol=1e-6)


def test_where_guesses_fail_they_cost_a_step_in_fifty() -> None:
    guesser, text, guessed = Guesser([]), [1, 2, 3] * 4, 0
    for _ in range(1000):
        if count := len(guesser.guess(text, MOST, 0.3)):
            guesser.learn(count, 0)
            guessed += count
    assert 0.3 * guessed < 20


@given(st.lists(st.tuples(st.integers(0, MOST), st.integers(0, 1)), max_size=200))
def test_odds_are_odds(learned: list[tuple[int, int]]) -> None:
    odds = Odds(0.4)
    for right, wrong in learned:
        odds.learn(right, wrong)
        odds.forget()
        assert 0 < odds.right < 1


def test_a_prediction_is_guessed_from_its_beginning_and_again_behind_a_change() -> None:
    prompt, predicted = [1, 2, 3, 4, 1, 2, 3], list(range(10, 40))
    guesser = Guesser(predicted)
    assert guesser.guess(prompt, 5, 0.001) == predicted[:5]
    said = [*predicted[:5], 7]
    assert guesser.guess(prompt + said, 5, 0.001) == []
    said += predicted[6:9]
    assert guesser.guess(prompt + said, 5, 0.001) == predicted[9:14]
