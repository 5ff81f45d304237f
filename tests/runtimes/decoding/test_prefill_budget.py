"""Reading a prompt stretches the time between the tokens of others by no more than it may, however slow the host."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.runtimes.decoding.prefill_budget import (
    APART_SECONDS,
    LEAST_SHARE,
    LEAST_TOKENS,
    PrefillBudget,
    Reading,
)

SECONDS = st.floats(1e-4, 1.0)


@settings(deadline=None)
@given(fixed=SECONDS, each=SECONDS, token=st.floats(1e-5, 0.02), answering=st.integers(1, 8), stretch=st.floats(1.5, 8))
def test_a_step_takes_no_longer_than_the_stretch_of_a_lone_answers(
    fixed: float, each: float, token: float, answering: int, stretch: float
) -> None:
    budget, left, alone = PrefillBudget(256, stretch), 5000, fixed + each * answering
    budget.note(1, 0, lone := fixed + each)
    budget.note(answering, 0, alone)
    for _ in range(5000):
        read = min(left, budget.reading(answering, [left]).tokens)
        seconds = alone + token * read
        bound = max(stretch * lone, (1 + LEAST_SHARE) * alone)
        assert read <= LEAST_TOKENS or seconds <= bound * 1.001
        budget.note(answering, read, seconds)
        left -= read
        if not left:
            return
    raise AssertionError("the prompt never ended")


@settings(deadline=None)
@given(fixed=SECONDS, each=SECONDS, token=st.floats(0.01, 1), answering=st.integers(1, 8), stretch=st.floats(1.5, 8))
def test_what_is_read_apart_takes_no_larger_share_and_comes_in_whole_pieces(
    fixed: float, each: float, token: float, answering: int, stretch: float
) -> None:
    budget, left, alone = PrefillBudget(256, stretch, apart=64), 1000, fixed + each * answering
    token *= alone
    budget.note(0, 64, token * 64)
    budget.note(1, 0, lone := fixed + each)
    budget.note(answering, 0, alone)
    share = max(stretch * lone - alone, LEAST_SHARE * alone) / alone
    waited = lone + alone
    for _ in range(20_000):
        reading = budget.reading(answering, [left])
        read = min(left, reading.tokens)
        if 64 * token > APART_SECONDS:
            assert not reading.apart
            budget.note(answering, read, alone + token * read)
        elif read:
            assert reading.apart
            assert read >= min(64, left)
            assert token * read <= max(waited, alone) * share * 1.001
            budget.note(0, read, token * read)
            waited = 0.0
        else:
            budget.note(answering, 0, alone)
            waited += alone
        left -= read
        if not left:
            return
    raise AssertionError("the prompt never ended")


def test_a_first_piece_apart_waits_for_nothing_and_a_slow_one_is_the_last() -> None:
    budget = PrefillBudget(256, 3.0, apart=64)
    budget.note(1, 0, 0.01)
    assert budget.reading(1, [1000]) == Reading(64, apart=True)
    budget.note(0, 64, 64 * 0.02)
    assert budget.reading(1, [936]) == Reading(LEAST_TOKENS)


@pytest.mark.parametrize("apart", [0, 64])
def test_the_more_wait_for_their_prompts_the_more_is_read(apart: int) -> None:
    budget = PrefillBudget(256, 3.0, apart)
    budget.note(1, 8, 0.01)
    budget.note(0, 64, 64 * 0.001)
    budget.note(1, 0, 0.01)
    budget.note(1, 8, 0.01 + 8 * 0.001)
    for _ in range(9):
        budget.note(1, 0, 0.01)
    expected = [64, 64, 139] if apart else [19, 59, 139]
    assert [budget.reading(1, [500] * prompts).tokens for prompts in (1, 3, 7)] == expected


@pytest.mark.parametrize("stretch", [1.0, 2.0])
def test_nobody_is_waited_for_where_nobody_answers(stretch: float) -> None:
    budget = PrefillBudget(256, stretch)
    for _ in range(3):
        assert budget.reading(0, [1000]).tokens == 256
        budget.note(0, 256, 9.0)


def test_a_host_that_has_become_slower_is_noticed() -> None:
    budget = PrefillBudget(256, 2.0)
    for token in (0.001, 0.004):
        for _ in range(20):
            budget.note(3, 0, 0.1)
            budget.note(3, read := budget.reading(3, [1000]).tokens, 0.1 + token * read)
        assert budget.reading(3, [1000]).tokens == pytest.approx(0.1 / token, abs=2)
