"""Beside a chat a batch goes on, and stretches its steps within bounds, whatever a step costs."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.runtimes.contract import Sampling
from enginehouse.runtimes.decoding.jobs import Running
from enginehouse.runtimes.decoding.priorities import LEAST_SHARE, STRETCH, Riders, batch_slots

STEPS = 800
SECONDS = st.floats(1e-4, 1.0)


def job(order: int, batch: bool) -> tuple[int, Running[None]]:
    return order, Running(order, [1], Sampling(), frozenset(), order, batch)


@settings(deadline=None)
@given(fixed=SECONDS, each=SECONDS, chats=st.integers(1, 4), batch=st.integers(1, 16))
def test_a_chat_takes_half_as_long_again_and_a_batch_says_something_in_one_step_of_eight(
    fixed: float, each: float, chats: int, batch: int
) -> None:
    seconds, spent, said, alone = dict[int, float](), 0.0, 0, fixed + each * chats
    riders = Riders(seconds)
    for _ in range(STEPS):
        answering, _ = riders.step([job(n, n >= chats) for n in range(chats + batch)], [])
        assert [running.order for _, running in answering[:chats]] == list(range(chats))
        step = fixed + each * len(answering)
        assert step <= 2 * alone * 1.001
        riders.note(len(answering), step)
        spent, said = spent + step, said + len(answering) - chats
    assert spent <= (STRETCH + 0.1) * alone * STEPS
    assert said >= STEPS // LEAST_SHARE


@settings(deadline=None)
@given(reading=st.booleans(), batch_reading=st.integers(0, 3), batch=st.integers(0, 3))
def test_every_job_goes_on_some_day_and_a_persons_prompt_is_read_first(
    reading: bool, batch_reading: int, batch: int
) -> None:
    answering = [job(0, False), *(job(n, True) for n in range(10, 10 + batch))]
    readers = [*([job(1, False)] if reading else []), *(job(n, True) for n in range(20, 20 + batch_reading))]
    riders, went_on = Riders({}), Counter[int]()
    for _ in range(8 * LEAST_SHARE):
        answered, read = riders.step(answering, readers)
        riders.note(len(answered), 1.0)
        went_on.update(running.order for _, running in (*answered, *read))
        assert answered[0][0] == 0
    assert went_on[0] == 8 * LEAST_SHARE
    assert not reading or went_on[1] >= 7 * LEAST_SHARE
    assert not batch or went_on[10] or went_on[20]
    assert not (batch_reading and not batch) or went_on[20]


def test_one_slot_is_left_to_the_next_chat_and_more_to_those_who_come() -> None:
    assert [batch_slots(8, chats) for chats in (0, 1, 2, 8, 20)] == [7, 7, 6, 0, 0]
    assert [batch_slots(1, chats) for chats in (0, 1)] == [1, 0]
