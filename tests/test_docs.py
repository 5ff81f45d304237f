"""README and docs say what is so."""

import contextlib
import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from enginehouse.config.load import load
from enginehouse.config.schema import Config, Model, Optimize, Routing, Server
from enginehouse.runtimes.engines import runtimes
from enginehouse.server import limits
from enginehouse.server.api.batches.types import BatchRequest, Upload
from enginehouse.server.api.chat import protocol as wire
from enginehouse.server.api.completions.protocol import CompletionRequest
from enginehouse.server.api.embeddings import EmbeddingRequest
from enginehouse.server.api.messages import protocol as messages_request
from enginehouse.server.api.ollama import options as ollama_options
from enginehouse.server.api.ollama import protocol as ollama_request
from enginehouse.server.api.ollama.embed import EmbedRequest
from enginehouse.server.api.ollama.pull import PullRequest
from enginehouse.server.api.rerank import RerankRequest
from enginehouse.server.api.responses import protocol as responses_request
from enginehouse.server.api.tokenize import TokenizeRequest
from enginehouse.server.cli.main import parser
from tests.bench.family_results import BEGIN, END, PAGE, read, tables
from tests.serving import Served

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONFIGURATION, API, ENGINES = (
    (ROOT / "docs" / f"{page}.md").read_text() for page in ("configuration", "api", "engines")
)
BATCHES = (ROOT / "docs" / "batches.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def defaults(struct: Any) -> dict[str, Any]:
    return {field.name: default(field) for field in msgspec.structs.fields(struct)}


def default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None if field.required else field.default


def test_the_config_reference_names_every_key_with_its_default() -> None:
    shown = yaml.safe_load(blocks(CONFIGURATION, "yaml")[0])
    model = shown["models"].pop("my-model")
    server = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults(Server).items()}
    assert shown["server"] == server
    assert shown["routing"] == defaults(Routing)
    assert shown["optimize"] == msgspec.to_builtins(Optimize())
    for key in ("cache_dir", "memory_budget", "kv_disk", "batch_disk"):
        assert shown[key] == defaults(Config)[key]
    expected = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults(Model).items()}
    assert model | {"source": None, "options": {}} == expected | {"options": {}}


def test_the_example_of_a_config_is_one(tmp_path: Path) -> None:
    file = tmp_path / "enginehouse.yaml"
    file.write_text(blocks(README, "yaml")[0])
    assert list(load(str(file), {}).models) == ["pocket", "qwen3", "mine"]


def test_the_options_of_every_runtime_are_all_there_with_their_defaults() -> None:
    shown = {(name, key): default for name, key, default in re.findall(r"\| (\w+) \| `(\w+)` \| (\S+) \|", ENGINES)}
    fields = {
        (name, field.name): json.dumps(field.default).strip('"') or '""'
        for name, runtime in runtimes().items()
        for field in msgspec.structs.fields(runtime.options)
    }
    assert shown == fields


def test_the_feature_matrix_is_what_the_engines_say_of_themselves() -> None:
    engines = {name: runtime for name, runtime in runtimes().items() if name != "echo"}
    every = dict.fromkeys(feature for runtime in engines.values() for feature in runtime.features)
    features = [feature for feature in every if feature not in ("stop", "constraint")]  # the worker's; its kinds follow
    rows = [f"| | {' | '.join(engines)} |", f"|---|{'---|' * len(engines)}"]
    for feature in features:
        cells = ["yes" if feature in runtime.features else "**no**" for runtime in engines.values()]
        rows.append(f"| `{feature}` | {' | '.join(cells)} |")
    assert "\n".join(rows) in ENGINES, "the matrix should be:\n" + "\n".join(rows)


def test_the_page_of_families_is_what_was_measured() -> None:
    remedy = "python -m tests.bench.families --page"
    assert f"{BEGIN}{tables(read())}{END}" in PAGE.read_text(), remedy


def test_every_command_is_named() -> None:
    names = re.findall(r"^    (\w+) ", parser().format_help(), re.MULTILINE)
    assert {"serve", "bench", "explain", "doctor"} <= set(names)
    for name in names:
        assert f"enginehouse {name}" in README, name


def test_every_field_of_a_request_is_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", API))
    openai = (wire.ChatRequest, CompletionRequest, EmbeddingRequest, BatchRequest, Upload)
    for struct in (*openai, RerankRequest, TokenizeRequest):
        assert {field.name for field in msgspec.structs.fields(struct)} - {"model"} <= listed
    assert listed >= wire.IGNORED


def test_every_field_of_the_other_dialects_is_listed() -> None:
    listed = set(re.findall(r"`(\w+)[`:.]", API))
    for request, rest in (
        (responses_request.ResponseRequest, responses_request.IGNORED | responses_request.NEUTRAL.keys()),
        (messages_request.MessageRequest, messages_request.IGNORED | messages_request.NEUTRAL.keys()),
        (ollama_request.OllamaChatRequest, ollama_request.NEUTRAL.keys()),
        (ollama_request.GenerateRequest, ollama_request.NEUTRAL_OF_TEXT.keys()),
        (ollama_options.Options, ollama_options.IGNORED | ollama_options.NEUTRAL.keys()),
        (EmbedRequest, set()),
        (PullRequest, set()),
    ):
        assert {field.name for field in msgspec.structs.fields(request)} | rest <= listed | {"model", "name"}


def test_the_limits_are_what_the_server_keeps_to() -> None:
    rows = [
        f"| {', '.join(f'`{field}`' for field in limit.fields)} | {limit.most:,} {limit.unit} |"
        for limit in limits.TABLE
    ]
    assert "\n".join(["| field | at most |", "|---|---|", *rows, ""]) in API, "\n".join(rows)
    rows = [f"| {' | '.join(row)} |" for row in limits.CONNECTION_TABLE]
    assert "\n".join(["| what | at most | then |", "|---|---|---|", *rows, ""]) in API, "\n".join(rows)


def test_the_example_of_both_dialects_prints_the_same_answer_twice(house: Served) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(blocks(API, "python")[0].replace("http://127.0.0.1:8080", house.root), {})
    assert printed.getvalue() == 2 * blocks(README, "text")[0]


def test_the_example_of_a_batch_prints_what_became_of_it(
    house: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(blocks(BATCHES, "python")[0].replace("http://127.0.0.1:8080", house.root), {})
    assert set(printed.getvalue().splitlines()) == {"completed 2 of 2", "France 200", "Italy 200"}


def test_the_curl_example_gives_the_answer_shown(house: Served) -> None:
    command = blocks(README, "sh")[0].replace("http://127.0.0.1:8080", house.root)
    reply = json.loads(subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout)
    shown = blocks(README, "json")[0]
    assert json.dumps(reply["choices"], separators=(",", ":"))[1:-1] in shown
    assert list(reply) == re.findall(r'"(id|object|created|model|system_fingerprint|choices|usage)":', shown)


def test_the_python_example_prints_what_is_shown(house: Served) -> None:
    program = blocks(README, "python")[0].replace("http://127.0.0.1:8080", house.root)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})
    assert printed.getvalue() == blocks(README, "text")[0].rstrip("\n")
