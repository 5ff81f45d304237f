"""A model that four bits damage, through the server: what the quality gate makes of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.checkpoints import outliers
from tests.serving import Served, serve

pytest.importorskip("torch")  # makes the model
# Below it is what four bits make of the model; a model that they make nonsense of would not pass the smoke test either.
BAR = {"divergence": 0.02, "agreement": 0.9, "perplexity": 1.1}
CAPITAL: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fragile")


@pytest.fixture(scope="module")
def models(house: Path) -> dict[str, Any]:
    fragile = {"source": str(outliers(house / "model", 32)), "runtime": "llamacpp"}
    return {"fragile": fragile, "pinned": fragile | {"precision": "int4"}}


@pytest.fixture(scope="module")
def served(house: Path, models: dict[str, Any]) -> Iterator[Served]:
    with serve(house, models, optimize={"int4": BAR}) as served:
        yield served


def ask(served: Served, model: str) -> tuple[Any, str]:
    """Headers and answer."""
    raw = served.client.chat.completions.with_raw_response.create(model=model, messages=CAPITAL, temperature=0)
    return raw.headers, raw.parse().choices[0].message.content or ""


def test_auto_steps_up_until_the_gate_holds_and_explains_it(served: Served) -> None:
    headers, answer = ask(served, "fragile")
    assert headers["x-enginehouse-precision"] == "Q5_K_M"  # the next rung, and good enough
    assert answer == "The capital of France is Paris."
    assert any("Q4_K_M is below the quality bar: divergence" in line for line in served.log)
    explained = httpx.get(f"{served.root}/v1/models/fragile/explain").json()
    assert explained["candidates"][0]["quality"]["agreement"] > 0.9
    rejected = [row["reason"] for row in explained["rejected"] if row["runtime"] == "llamacpp"]
    assert [reason.split()[0] for reason in rejected] == ["Q4_K_M"]
    kept = [path.name for path in (served.cache / "artifacts").iterdir()]
    assert not any("Q4_K_M" in name for name in kept), "what failed is thrown away"


def test_a_pinned_precision_below_the_bar_is_served_with_a_warning(served: Served) -> None:
    headers, _ = ask(served, "pinned")
    served.wait_for("'pinned' is served all the same: llamacpp/cpu/Q4_K_M is below the quality bar")
    assert headers["x-enginehouse-precision"] == "Q4_K_M"
    assert "warning: Q4_K_M is below the quality bar: divergence" in headers["x-enginehouse-reason"]


def test_or_refused_where_the_operator_says_so(house: Path, models: dict[str, Any]) -> None:
    with serve(house, models, optimize={"quality": "enforce", "int4": BAR}) as strict:
        with pytest.raises(openai.APIStatusError, match="below the quality bar") as refused:
            ask(strict, "pinned")
        assert (refused.value.status_code, refused.value.code) == (503, "model_load_failed")
        assert ask(strict, "fragile")[1] == "The capital of France is Paris."


def test_a_bar_that_is_lowered_lets_the_same_artifact_pass(house: Path, models: dict[str, Any]) -> None:
    lowered = {"divergence": 0.5, "agreement": 0.5, "perplexity": 2, "accuracy": 0.5}
    with serve(house, models, optimize={"int4": lowered}) as lenient:
        assert ask(lenient, "fragile")[0]["x-enginehouse-precision"] == "Q4_K_M"
