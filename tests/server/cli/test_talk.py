"""Talking with a model in the terminal, and starting agents on it: over a real server and real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.cli.test_cli import run
from tests.serving import Served, free_port, serve

MODELS = {"pocket": {"source": "builtin:pocket", "runtime": "llamacpp"}, "echo": {"source": "builtin:echo"}}
AGENT = """#!{python}
import json, os, sys
file = sys.argv[sys.argv.index("--config") + 1] if "--config" in sys.argv else None
print(json.dumps([sys.argv[1:], dict(os.environ), open(file).read() if file else None]))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("house"), MODELS, api_keys=["secret"]) as served:
        yield served


def talk(
    folder: Path, served: Served, *arguments: str, typed: str = "", path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {"ENGINEHOUSE_URL": served.root, "ENGINEHOUSE_API_KEY": "secret"}
    if path:
        environment["PATH"] = f"{path}{os.pathsep}{os.environ['PATH']}"
    return run(folder, *arguments, typed=typed, **environment)


def test_an_answer_and_nothing_else_goes_to_the_standard_output(house: Served, tmp_path: Path) -> None:
    asked = talk(tmp_path, house, "run", "pocket", "What", "is the capital of", "France?", "--temperature", "0")
    assert (asked.stdout, asked.stderr, asked.returncode) == ("The capital of France is Paris.\n", "", 0)


def test_what_is_piped_in_is_asked_too(house: Served, tmp_path: Path) -> None:
    assert talk(tmp_path, house, "run", "echo", "Read this:", typed="a file\n").stdout == "Read this:\n\na file\n"
    assert talk(tmp_path, house, "run", "echo", typed="only this").stdout == "only this\n"
    nothing = talk(tmp_path, house, "run", "echo")
    assert nothing.stderr == "enginehouse: there is no prompt; write it behind the model's name, or pipe it in\n"
    assert nothing.returncode == 1


def test_a_chat_goes_on_is_begun_anew_and_changes_its_model(house: Served, tmp_path: Path) -> None:
    typed = "My name is Anna.\nWhat is my name?\n/new\n/model echo\nonce more\n/model none\n/what\n"
    said = talk(tmp_path, house, "chat", "pocket", typed=typed)
    assert said.returncode == 0
    lines = [line.removeprefix(">>> ") for line in said.stdout.replace(">>> >>> ", ">>> ").splitlines()]
    assert "Anna" in lines[1]
    assert "once more" in lines[2:][0]
    assert "there is no model 'none'; have: pocket, echo" in said.stderr
    assert "/retry" in said.stderr
    assert "tokens" in said.stderr


def test_a_chat_starts_a_server_where_none_runs_and_leaves_none_behind(tmp_path: Path) -> None:
    port = free_port()
    config = {"server": {"port": port}, "cache_dir": str(tmp_path / "cache"), "models": {"echo": MODELS["echo"]}}
    (tmp_path / "enginehouse.yaml").write_text(json.dumps(config))
    said = run(tmp_path, "chat", typed="hello there\n")
    assert "hello there" in said.stdout
    assert said.returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")
    assert "startup complete" in (tmp_path / "cache" / "serve.log").read_text()


def test_where_no_server_answers_that_is_said_with_the_remedy(tmp_path: Path) -> None:
    root = f"http://127.0.0.1:{free_port()}"
    asked = run(tmp_path, "ps", ENGINEHOUSE_URL=root)
    assert asked.stderr.startswith(f"enginehouse: no server answers at {root} (")
    assert asked.stderr.endswith("; start one with: enginehouse serve\n")
    assert asked.returncode == 1


def test_a_wrong_key_is_told_in_the_servers_words(house: Served, tmp_path: Path) -> None:
    asked = run(tmp_path, "ps", ENGINEHOUSE_URL=house.root, ENGINEHOUSE_API_KEY="wrong")
    assert "API key" in asked.stderr
    assert asked.stderr.count("\n") == 1
    assert asked.returncode == 1


def test_what_is_loaded_is_listed_and_ended(house: Served, tmp_path: Path) -> None:
    talk(tmp_path, house, "run", "echo", "hello")
    assert "echo" in talk(tmp_path, house, "ps").stdout
    (status,) = (
        one["status"] for one in json.loads(talk(tmp_path, house, "ps", "--json").stdout) if one["id"] == "echo"
    )
    assert status["state"] == "loaded"
    assert talk(tmp_path, house, "stop", "echo").returncode == 0
    assert all(one["id"] != "echo" for one in json.loads(talk(tmp_path, house, "ps", "--json").stdout))


@pytest.mark.parametrize(
    ("name", "program", "wanted"),
    [
        (
            "claude",
            "claude",
            {"ANTHROPIC_BASE_URL": "{root}", "ANTHROPIC_AUTH_TOKEN": "secret", "ANTHROPIC_MODEL": "echo"},
        ),
        ("codex", "codex", {"ENGINEHOUSE_API_KEY": "secret"}),
        ("qwen", "qwen", {"OPENAI_BASE_URL": "{root}/v1", "OPENAI_API_KEY": "secret", "OPENAI_MODEL": "echo"}),
        ("aider", "aider", {"OPENAI_API_BASE": "{root}/v1", "OPENAI_API_KEY": "secret"}),
        ("opencode", "opencode", {}),
        ("continue", "cn", {}),
    ],
)
def test_an_agent_is_started_with_all_that_it_needs_and_no_file_of_the_users(
    house: Served, tmp_path: Path, name: str, program: str, wanted: dict[str, str]
) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / program
    script.write_text(AGENT.format(python=sys.executable))
    script.chmod(0o755)
    (tmp_path / "enginehouse.yaml").write_text(json.dumps({"cache_dir": str(tmp_path / "cache"), "models": MODELS}))
    asked = ("launch", name, "--model", "echo", "--", "-p", "do it")
    started = talk(tmp_path, house, *asked, path=tmp_path / "bin")
    assert started.returncode == 7, started.stderr
    arguments, environment, file = json.loads(started.stdout)
    assert arguments[-2:] == ["-p", "do it"]
    for variable, value in wanted.items():
        assert environment[variable] == value.format(root=house.root)
    told = json.dumps([arguments, {key: environment[key] for key in environment if key.startswith("OPENCODE")}, file])
    if name not in ("claude", "qwen", "aider"):
        assert house.root in told
        assert "echo" in told
    assert "secret" not in started.stderr


def test_an_agent_that_is_not_there_is_named_with_how_to_get_it(house: Served, tmp_path: Path) -> None:
    asked = talk(tmp_path, house, "launch", "qwen", path=tmp_path)
    assert asked.stderr == "enginehouse: 'qwen' is not installed here; npm install -g @qwen-code/qwen-code\n"
    assert asked.returncode == 1
