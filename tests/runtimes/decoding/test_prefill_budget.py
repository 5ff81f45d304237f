"""Reading a prompt stretches the time between the tokens of others by no more than it may, however slow the host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.decoding.prefill_budget import LEAST_SHARE, LEAST_TOKENS, PrefillBudget

SECONDS = st.floats(1e-4, 1.0)


@given(fixed=SECONDS, each=SECONDS, token=st.floats(1e-5, 0.02), answering=st.integers(1, 8), stretch=st.floats(1.5, 8))
def test_a_step_takes_no_longer_than_the_stretch_of_a_lone_answers(
    fixed: float, each: float, token: float, answering: int, stretch: float
) -> None:
    budget, left, alone = PrefillBudget(256, stretch), 5000, fixed + each * answering
    budget.note(1, 0, lone := fixed + each)
    budget.note(answering, 0, alone)
    for _ in range(5000):
        read = min(left, budget.tokens(answering))
        seconds = alone + token * read
        bound = max(stretch * lone, (1 + LEAST_SHARE) * alone)
        assert read <= LEAST_TOKENS or seconds <= bound * 1.001
        budget.note(answering, read, seconds)
        left -= read
        if not left:
            return
    raise AssertionError("the prompt never ended")


def test_the_more_wait_for_their_prompts_the_more_is_read() -> None:
    budget = PrefillBudget(256, 3.0)
    budget.note(1, 0, 0.01)
    budget.note(1, 8, 0.01 + 8 * 0.001)
    assert [budget.tokens(1, reading) for reading in (1, 3, 7)] == [19, 59, 139]


@pytest.mark.parametrize("stretch", [1.0, 2.0])
def test_nobody_is_waited_for_where_nobody_answers(stretch: float) -> None:
    budget = PrefillBudget(256, stretch)
    for _ in range(3):
        assert budget.tokens(0) == 256
        budget.note(0, 256, 9.0)


def test_a_host_that_has_become_slower_is_noticed() -> None:
    budget = PrefillBudget(256, 2.0)
    for token in (0.001, 0.004):
        for _ in range(20):
            budget.note(3, 0, 0.1)
            budget.note(3, read := budget.tokens(3), 0.1 + token * read)
        assert budget.tokens(3) == pytest.approx(0.1 / token, abs=2)
