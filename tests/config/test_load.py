"""The config file: strict, and its errors say where and what would be right."""

from pathlib import Path

import pytest

from enginehouse.config.load import BadConfig, load
from enginehouse.config.schema import seconds

WRONG = {
    "server: {prt: 3}\nmodels: {a: {source: x}}": "unknown key 'server.prt'; did you mean 'port'?",
    "models: {a: {source: x, precison: int4}}": "model 'a': unknown key 'precison'; did you mean 'precision'?",
    "models: {a: {source: x, slots: 0}}": "model 'a': 'slots': expected `int` >= 1",
    "models: {a: {source: x}, a: {source: y}}": "key 'a' is given twice",
    "models: [": "line 1",
    "modls: {}\nmodels: {a: {source: x}}": "unknown key 'modls'; did you mean 'models'?",
    'server: {api_keys: [""]}\nmodels: {a: {source: x}}': "'server.api_keys[0]': expected a key",
    'server: {api_keys: [good, "a b"]}\nmodels: {a: {source: x}}': "expected a key of printable ASCII without blanks",
    "server: {api_keys: [a, b], batch_keys: [b]}\nmodels: {a: {source: x}}": "a key is in api_keys and in batch_keys",
    'server: {batch_keys: ["a b"]}\nmodels: {a: {source: x}}': "expected a key of printable ASCII without blanks",
    "server: {api_keys: [schlüssel]}\nmodels: {a: {source: x}}": "expected a key of printable ASCII without blanks",
    "server: {port: http}\nmodels: {a: {source: x}}": "'server.port': expected `int`, got `str`",
    "models: {a: {source: x, keep_alive: 3d}}": "expected a duration such as 30s, 10m, 2h or forever",
    "models: {a: {source: x, aliases: [b]}, b: {source: y}}": "model 'a': alias 'b' already names model 'b'",
    "models: {a: {precision: int4}}": "model 'a': object missing required field `source`",
    "models: {}": "'models' must name at least one model",
    "": "is empty",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_named_with_file_place_and_remedy(tmp_path: Path, text: str) -> None:
    file = tmp_path / "house.yaml"
    file.write_text(text)
    with pytest.raises(BadConfig) as caught:
        load(str(file), {})
    assert f"config '{file}'" in str(caught.value)
    assert WRONG[text] in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"nowhere\.yaml': cannot be read: No such file"):
        load(str(tmp_path / "nowhere.yaml"), {})


def test_without_a_file_the_pocket_model_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).models["pocket"].source == "builtin:pocket"


def test_the_file_in_the_working_folder_wins_over_the_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "enginehouse.yaml").write_text("models: {mine: {source: x}}")
    assert list(load(None, {}).models) == ["mine"]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "house.yaml"
    file.write_text("server: {port: 1}\nmodels: {a: {source: x}}")
    config = load(None, {"ENGINEHOUSE_CONFIG": str(file), "ENGINEHOUSE_PORT": "99", "ENGINEHOUSE_API_KEYS": "k1,k2"})
    assert (config.server.port, config.server.api_keys) == (99, ("k1", "k2"))


def test_a_wrong_value_in_the_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"environment ENGINEHOUSE_\*: 'port'"):
        load(None, {"ENGINEHOUSE_PORT": "many"})


@pytest.mark.parametrize(("text", "expected"), [("30s", 30), ("1.5m", 90), ("2h", 7200), ("forever", None)])
def test_durations_are_read_in_seconds(text: str, expected: float | None) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("keys", ["", " ", "a,,b", "a, b c", "a,"])
def test_keys_in_the_environment_that_no_header_can_match_are_refused(keys: str) -> None:
    with pytest.raises(BadConfig, match=r"ENGINEHOUSE_\*: 'api_keys.*a key of printable ASCII without blanks"):
        load(None, {"ENGINEHOUSE_API_KEYS": keys})


def test_blanks_beside_keys_in_the_environment_are_no_part_of_them() -> None:
    assert load(None, {"ENGINEHOUSE_API_KEYS": " a, b "}).server.api_keys == ("a", "b")


def test_relative_paths_are_relative_to_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / "house.yaml"
    file.write_text(
        "cache_dir: ./cache\n"
        "models:\n"
        "  dotted: {source: ./gone}\n"
        "  bare: {source: models/mine, adapter: ./lora}\n"
        "  hub: {source: Qwen/Qwen3-0.6B}\n"
        "  file: {source: Qwen/Qwen3-0.6B-GGUF/it.gguf}\n"
        "  builtin: {source: 'builtin:pocket'}\n"
    )
    config = load(str(file), {})
    assert config.cache_dir == str(tmp_path / "cache")
    assert config.models["dotted"].source == str(tmp_path / "gone")
    assert config.models["bare"].source == str(tmp_path / "models" / "mine")
    assert config.models["bare"].adapter == str(tmp_path / "lora")
    assert config.models["hub"].source == "Qwen/Qwen3-0.6B"
    assert config.models["file"].source == "Qwen/Qwen3-0.6B-GGUF/it.gguf"
    assert config.models["builtin"].source == "builtin:pocket"
