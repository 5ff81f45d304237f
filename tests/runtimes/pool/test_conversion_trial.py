"""A family that nobody has compared with transformers: its conversion is judged before anything of it is served."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginehouse.optimize.ladder import family
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains import toolchains
from tests.serving import Served, serve

pytest.importorskip("torch")  # makes the models
from tests.checkpoints import make_checkpoint

MLX = toolchains()["mlx"]
RIGHT, WRONG = "Starcoder2ForCausalLM", "GlmForCausalLM"  # as mlx_lm 0.32.2 computes them


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if reason := MLX.unavailable():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("families")
    models: dict[str, Any] = {}
    for architecture in (RIGHT, WRONG):
        make_checkpoint(folder / architecture, architecture)
        models[architecture] = {"source": str(folder / architecture), "runtime": "mlx", "precision": "int8"}
    with serve(folder, models) as served:
        yield served


def ask(served: Served, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "hello", "max_tokens": 3}
    return httpx.post(f"{served.root}/v1/completions", json=body, timeout=120)


def test_one_that_is_right_is_quantized_and_served(served: Served) -> None:
    answer = ask(served, RIGHT)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-enginehouse-precision"] == "8bit-g64"
    assert any(f"'{RIGHT}' as mlx: the conversion is right" in line for line in served.log)


def test_one_that_is_wrong_is_refused_with_the_figures_and_not_tried_again(served: Served) -> None:
    for _ in range(2):
        refused = ask(served, WRONG)
        assert refused.status_code == 503
        assert f"'{WRONG}' as mlx bf16 is below the quality bar: divergence" in refused.json()["error"]["message"]
    assert sum("building mlx" in line and WRONG in line for line in served.log) == 1
    rejected = httpx.get(f"{served.root}/v1/models/{WRONG}/explain").json()["rejected"]
    assert any("is below the quality bar" in one["reason"] for one in rejected)
    kept = [path.name for path in (served.cache / "artifacts").iterdir()]
    assert len(kept) == 2, f"nothing of what is wrong: {kept}"


def test_a_verdict_holds_for_all_sizes_of_a_kind_and_for_no_other_kind(tmp_path: Path) -> None:
    def of(name: str, **config: Any) -> str:
        make_checkpoint(tmp_path / name, RIGHT, **config)
        return family(MLX, resolve(str(tmp_path / name)))

    assert of("one") == of("larger", num_hidden_layers=3)
    assert of("one") != of("other", hidden_act="relu")
