"""What a verdict takes: numbers alone, no model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.config.schema import Limits, Optimize
from enginehouse.optimize.ladder import shortfall
from enginehouse.optimize.quality.evidence import FEWEST, Evidence, Places

BAR = Limits(divergence=0.10, agreement=0.93, perplexity=1.10)
TEXTS = 60


def text(chance: np.random.Generator, divergence: float, places: int = 60) -> Places:
    """Of an artifact that is so far from its source on average, and more or less so from text to text and place to
    place."""
    here = divergence * chance.gamma(4, 1 / 4)
    diverges = chance.exponential(here, places)
    agrees = chance.random(places) > here / 2
    right = chance.random(places) > 0.3
    return Places(diverges, chance.random(places) > 0.25, agrees, chance.normal(here / 2, 0.1, places), right, right)


def verdict(divergence: float, seed: int) -> tuple[bool, int]:
    """Whether it is within the bar, and texts read."""
    chance, evidence = np.random.default_rng(seed), Evidence(BAR, has_answers=False)
    for _ in range(TEXTS):
        evidence.add(text(chance, divergence))
        if evidence.is_bad():
            break
    found = evidence.quality(TEXTS, "any")
    within = (
        found.divergence <= BAR.divergence and found.agreement >= BAR.agreement and found.perplexity <= BAR.perplexity
    )
    return within, found.texts


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 10_000))
def test_what_is_far_beyond_the_bar_is_refused_after_a_few_texts(seed: int) -> None:
    good, read = verdict(0.02, seed)
    assert good
    assert read == TEXTS
    good, read = verdict(0.35, seed)
    assert not good
    assert read <= FEWEST + 8


def test_what_is_close_to_the_bar_is_seldom_misjudged() -> None:
    wrong = 0
    for seed in range(100):
        for divergence, good in ((0.06, True), (0.18, False)):
            wrong += verdict(divergence, seed)[0] is not good
    assert wrong <= 4


def read(evidence: Evidence, texts: int, grave: int) -> None:
    """So many of each text's 60 places are wholly wrong, all others right."""
    for _ in range(texts):
        wrong = np.arange(60) < grave
        divergence = np.where(wrong, 3.0, 0.01)
        evidence.add(Places(divergence, np.ones(60, bool), ~wrong, divergence, ~wrong, np.ones(60, bool)))


def test_an_error_that_only_late_texts_show_is_found() -> None:
    """Five digits had changed places, and the first twelve texts held none of them."""
    evidence = Evidence(BAR, has_answers=False)
    read(evidence, texts=12, grave=0)
    assert not evidence.is_bad()
    read(evidence, texts=16, grave=3)
    assert shortfall(evidence.quality(28, "any"), "Q4_K_M", Optimize())


def test_a_rare_error_that_is_grave_misses_a_bar_though_every_mean_keeps_it() -> None:
    evidence = Evidence(BAR, has_answers=False)
    read(evidence, texts=FEWEST, grave=1)
    assert evidence.is_bad()
    found = evidence.quality(FEWEST, "any")
    assert (found.divergence, found.agreement) == pytest.approx((0.06, 0.983), abs=0.001)
    assert found.perplexity < BAR.perplexity
    assert shortfall(found, "Q4_K_M", Optimize()) == (
        "is below the quality bar: worst divergence in a hundred 3 is above 1"
    )


def test_answers_that_were_given_and_are_not_any_more_count_as_one_share() -> None:
    places = 20
    right, zeros, sure = np.ones(places, bool), np.zeros(places), np.ones(places, bool)
    wrong = right.copy()
    wrong[3] = False
    evidence = Evidence(BAR, has_answers=True)
    for at in range(40):
        evidence.add(Places(zeros, sure, right, zeros, wrong if at % 10 == 0 else right, right))
        evidence.add(Places(zeros, sure, right, zeros, wrong, wrong))  # the source does not give it either
    assert evidence.quality(80, "any").accuracy == pytest.approx(0.9)
