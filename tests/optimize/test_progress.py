"""Progress of the whole from reports of its stages."""

from hypothesis import given
from hypothesis import strategies as some
from pytest import approx

from enginehouse.optimize.artifact import Manifest, Recipe, Source
from enginehouse.optimize.progress import STAGES, LoadProgress, estimate
from enginehouse.optimize.toolchains import toolchains

GGUF = toolchains()["gguf"]
seconds = some.dictionaries(some.sampled_from(STAGES), some.floats(0, 1e5), min_size=1)
reports = some.lists(
    some.tuples(some.sampled_from([*STAGES, "measure"]), some.floats(0, 1), some.floats(0, 1e4)), min_size=1
)


@given(seconds, reports)
def test_percent_never_falls_and_seconds_left_are_never_negative_whatever_is_reported(
    estimates: dict[str, float], reported: list[tuple[str, float, float]]
) -> None:
    load, now, last = LoadProgress(estimates, 0.0), 0.0, 0.0
    for stage, fraction, passed in reported:
        now += passed
        progress = load.report(stage, fraction, now)
        assert last <= progress.percent <= 100
        assert progress.seconds_left >= -1e-6
        last = progress.percent
    assert load.end().percent == 100
    assert load.end().seconds_left == 0


@given(seconds)
def test_a_way_through_all_its_stages_ends_at_100(estimates: dict[str, float]) -> None:
    load = LoadProgress(estimates, 0.0)
    for stage in STAGES:
        if stage in estimates:
            progress = load.report(stage, 1.0, 1.0)
    assert progress.percent == approx(100)
    assert progress.seconds_left == approx(0, abs=1e-6)


def test_the_time_left_is_the_estimate_at_first_and_follows_the_pace() -> None:
    load = LoadProgress({"convert": 10, "quantize": 90}, 0.0)
    assert load.report("convert", 0.0, 0.0).seconds_left == 100
    load.report("convert", 1.0, 20.0)
    halfway = load.report("quantize", 0.5, 110.0)
    assert halfway.percent == 55
    assert 80 < halfway.seconds_left < 90  # twice as slow as estimated: 45 seconds' worth of work


def test_a_slow_network_does_not_make_the_build_seem_slow() -> None:
    load = LoadProgress({"fetch": 10, "convert": 10, "quantize": 10}, 0.0)
    assert load.report("fetch", 0.5, 500.0).seconds_left == 500 + 20
    load.report("fetch", 1.0, 1000.0)
    assert load.report("convert", 0.0, 1000.0).seconds_left == 20


def test_other_estimates_on_the_way_take_nothing_back() -> None:
    load = LoadProgress({"fetch": 90, "convert": 10}, 0.0)
    before = load.report("fetch", 1.0, 5.0).percent
    load.expect({"convert": 15}, 5.0)
    assert load.report("convert", 0.0, 5.0).percent == before
    assert load.report("convert", 1.0, 20.0).percent == 100


def source(size: int) -> Source:
    return Source("tiny", "checkpoint", "", "Qwen3ForCausalLM", 0, size // 2, size, "f")


def built(size: int, precision: str, **spent: float) -> Manifest:
    return Manifest("k", Recipe("gguf", precision, "f", {}), source(size), {}, spent, 0, "", "")


def test_what_was_built_here_of_that_size_says_more_than_the_prior() -> None:
    gib = 2**30
    prior = estimate(GGUF, source(gib), "Q8_0", [])
    assert all(prior[stage] >= seconds for stage, seconds in GGUF.seconds_per_gib.items())
    much_smaller = built(gib // 100, "Q8_0", convert=3)
    assert estimate(GGUF, source(gib), "Q8_0", [much_smaller]) == prior
    other = built(gib, "Q4_K_M", convert=1, quantize=40)
    assert estimate(GGUF, source(gib), "Q8_0", [much_smaller, other])["quantize"] == 40
    same = built(gib // 2, "Q8_0", convert=1, quantize=10)
    assert estimate(GGUF, source(gib), "Q8_0", [other, same])["quantize"] == 20


def test_every_toolchain_estimates_time_and_memory() -> None:
    for toolchain in toolchains().values():
        for precision in toolchain.precisions.values():
            assert 0 < toolchain.memory_bytes(source(2**30), precision) < 8 * 2**30
        assert set(toolchain.seconds_per_gib) <= set(STAGES)
