"""The precision ladder: which rung is built next, and why those below are passed over."""

from pathlib import Path

import pytest

from enginehouse.config.schema import Limits, Optimize
from enginehouse.optimize import ladder
from enginehouse.optimize.artifact import Manifest, Quality, Source, bits
from enginehouse.optimize.store import Store
from enginehouse.optimize.toolchains import toolchains

RUNGS = ("Q4_K_M", "Q5_K_M", "Q8_0", "BF16")
RULES = Optimize()
GOOD = Quality(0.001, 0.02, 0.99, 1.0, None, 100, 28, 28, "transformers")
BAD = Quality(3.78, 20.0, 0.372, 44.0, 0.5, 100, 8, 28, "transformers")


def test_the_lowest_rung_that_has_not_failed_is_next() -> None:
    assert ladder.lowest(RUNGS, {}) == "Q4_K_M"
    assert ladder.lowest(RUNGS, {"Q4_K_M": "bad", "Q5_K_M": "bad"}) == "Q8_0"
    assert ladder.lowest(RUNGS, dict.fromkeys(RUNGS, "bad")) is None


def test_every_rung_below_has_its_sentence() -> None:
    assert ladder.passed_over(RUNGS, "Q8_0", {"Q4_K_M": "is bad", "Q5_K_M": "is worse"}) == [
        "Q4_K_M is bad",
        "Q5_K_M is worse",
    ]
    assert ladder.passed_over(RUNGS, "Q4_K_M", {}) == []


@pytest.mark.parametrize("precision", ["INT4_ASYM_G64", "Q8_0", "BF16"])
def test_the_bar_is_that_of_the_precision(precision: str) -> None:
    assert ladder.shortfall(GOOD, precision, RULES) is None
    why = ladder.shortfall(BAD, precision, RULES) or ""
    assert "divergence 3.78 is above" in why and "agreement 0.372 is below" in why and "perplexity 44 is above" in why


def test_a_bar_of_four_bits_is_not_that_of_eight() -> None:
    middling = Quality(0.05, 0.4, 0.95, 1.05, None, 100, 28, 28, "transformers")
    assert ladder.shortfall(middling, "Q4_K_M", RULES) is None
    assert ladder.shortfall(middling, "Q8_0", RULES)
    assert ladder.shortfall(middling, "Q8_0", Optimize(int8=Limits(0.10, 0.90, 1.10))) is None


def test_a_rung_that_failed_is_known_by_its_figures_though_it_was_thrown_away(tmp_path: Path) -> None:
    gguf, store = toolchains()["gguf"], Store(tmp_path)
    source = Source("./m", "checkpoint", str(tmp_path), "Qwen3ForCausalLM", 64, 10, 20, "abc")
    recipe = gguf.recipe(source, "Q4_K_M")
    with store.building(recipe.key) as folder:
        store.publish(folder, Manifest(recipe.key, recipe, source, {}, {}, 0, "2026-01-01T00:00:00+00:00", "0", BAD))
    store.discard(recipe.key)
    failures = ladder.failed(gguf, source, "auto", store, RULES)
    assert list(failures) == ["Q4_K_M"]
    assert ladder.lowest(tuple(gguf.ladder), failures) == "Q5_K_M"


def test_general_names_are_the_same_for_every_toolchain() -> None:
    for name, width in (("int4", 4), ("int8", 8), ("16bit", 16)):
        for toolchain in toolchains().values():
            assert bits(toolchain.precisions[name]) == width
