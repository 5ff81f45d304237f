"""The command: what it says when it cannot start, and what it does not load."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from enginehouse.runtimes.engines import runtimes
from enginehouse.server.cli.main import OLLAMA_PORT
from tests.serving import free_port, serve

POCKET = {"models": {"pocket": {"source": "builtin:pocket"}}}


def run(folder: Path, *arguments: str, typed: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "enginehouse.server.cli.main", *arguments]
    root = str(Path(__file__).parents[3] / "src")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ENGINEHOUSE_")}
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        input=typed,
        text=True,
        timeout=60,
        env={**clean, "PYTHONPATH": root, **environment},
    )


def test_a_port_in_use_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run(tmp_path, "serve", "--port", port)
    assert ended.returncode == 1
    assert (
        ended.stderr
        == f"enginehouse: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port\n"
    )


def test_with_ollama_in_the_config_its_port_is_listened_on_too_or_named_when_it_is_taken(tmp_path: Path) -> None:
    try:
        taken = socket.create_server(("127.0.0.1", OLLAMA_PORT))
    except OSError:
        pytest.skip(f"port {OLLAMA_PORT} is not free here")
    with taken:
        (tmp_path / "enginehouse.yaml").write_text("server: {ollama: true}\nmodels: {a: {source: 'builtin:echo'}}")
        ended = run(tmp_path, "serve", "--port", str(free_port()))
    assert ended.returncode == 1
    assert ended.stderr == (
        f"enginehouse: cannot listen on 127.0.0.1 port {OLLAMA_PORT}: Address already in use; "
        "stop Ollama, or leave out server.ollama\n"
    )
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, ollama=True) as served:
        for root in (served.root, f"http://localhost:{OLLAMA_PORT}"):
            assert httpx.get(f"{root}/api/tags", timeout=60).json()["models"][0]["name"] == "echo:latest"
            assert httpx.get(f"{root}/v1/models", timeout=60).status_code == 200


def test_a_mistake_in_the_config_ends_the_command_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "enginehouse.yaml").write_text("models: {a: {source: x, precison: int4}}")
    ended = run(tmp_path, "serve")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "model 'a': unknown key 'precison'; did you mean 'precision'?" in ended.stderr


def test_listening_to_the_outside_without_keys_must_be_said_aloud(tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "--host", "0.0.0.0")
    assert ended.returncode == 1
    assert "no API keys; set ENGINEHOUSE_API_KEYS" in ended.stderr


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("{source: x, runtime: mxl}", "unknown runtime 'mxl'; have: auto, echo, llamacpp, mlx, onnx, openvino"),
        ("{source: x, options: {lamacpp: {}}}", "unknown runtime 'lamacpp'"),
        (
            "{runtime: upstream, upstream: {base_urls: ['http://a/v1'], model: m, parser: hermit}}",
            "upstream.parser: unknown parser 'hermit'; have: deepseek",
        ),
        ("{source: x, options: {llamacpp: {kv_token: 1}}}", "options.llamacpp: unknown key 'kv_token'; did you mean"),
        (
            "{source: x, options: {openvino: {kv_precision: i3}}}",
            "'kv_precision': invalid enum value",
        ),
    ],
)
def test_what_only_a_runtime_knows_is_checked_before_serving(tmp_path: Path, model: str, words: str) -> None:
    (tmp_path / "enginehouse.yaml").write_text(f"models: {{a: {model}}}")
    ended = run(tmp_path, "serve")
    assert ended.returncode == 1
    assert "model 'a': " in ended.stderr
    assert words in ended.stderr


def test_the_help_names_every_flag_of_serve(tmp_path: Path) -> None:
    shown = run(tmp_path, "serve", "--help").stdout
    assert all(flag in shown for flag in ("--config FILE", "--host HOST", "--port PORT", "--log-level"))


def test_keys_are_asked_of_everything_but_the_health_checks(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, api_keys=["secret", "other"]) as served:
        assert httpx.get(f"{served.root}/health").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            refused = httpx.get(f"{served.root}/v1/models", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        for key in ("secret", "other"):
            assert httpx.get(f"{served.root}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200


def test_the_server_process_imports_no_engine_and_no_toolchain_library() -> None:
    program = """
import sys
import enginehouse.server.cli.main, enginehouse.server.app, uvicorn
from enginehouse.config.load import load
from enginehouse.runtimes.pool.pool import Pool
Pool(load(None, {})).ready()
heavy = {"llama_cpp", "torch", "transformers", "numpy", "gguf", "tokenizers", "tiktoken", "huggingface_hub"}
print(sorted(heavy & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_flags_win_over_environment_and_environment_over_file(tmp_path: Path) -> None:
    taken = free_port()
    (tmp_path / "enginehouse.yaml").write_text(json.dumps(POCKET | {"server": {"port": 1}}))
    with socket.create_server(("127.0.0.1", taken)):
        assert f"port {taken}" in run(tmp_path, "serve", ENGINEHOUSE_PORT=str(taken)).stderr
        assert f"port {taken}" in run(tmp_path, "serve", "--port", str(taken), ENGINEHOUSE_PORT="2").stderr


@pytest.mark.parametrize("command", [["serve", "--prot", "1"], ["sreve"], []])
def test_an_unknown_flag_or_command_is_refused(tmp_path: Path, command: list[str]) -> None:
    assert run(tmp_path, *command).returncode == 2


def test_health_asks_at_the_port_of_the_config_and_exits_with_one_where_nobody_answers(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, host="0.0.0.0", allow_open=True) as served:
        (config,) = tmp_path.glob("config-*.yaml")
        ended = run(tmp_path, "health", "--config", str(config))
        assert (ended.returncode, "lives" in ended.stdout) == (0, True), ended
        port = served.root.rpartition(":")[2]
        assert run(tmp_path, "health", ENGINEHOUSE_PORT=port).returncode == 0
    ended = run(tmp_path, "health", "--config", str(config))
    assert (ended.returncode, f"no server answers on 0.0.0.0 port {port}" in ended.stdout) == (1, True), ended


def test_doctor_says_what_the_machine_has_and_that_it_can_serve(tmp_path: Path) -> None:
    ended = run(tmp_path, "doctor", ENGINEHOUSE_CACHE_DIR=str(tmp_path / "cache"))
    assert ended.returncode == 0, ended.stderr
    assert "this machine can serve" in ended.stdout
    for runtime in runtimes():
        assert runtime in ended.stdout
    assert "fingerprint" in ended.stdout


def test_doctor_names_each_trouble_and_exits_with_one(tmp_path: Path) -> None:
    (tmp_path / "enginehouse.yaml").write_text("models: {a: {source: x, precison: int4}}")
    ended = run(tmp_path, "doctor")
    assert ended.returncode == 1
    assert "trouble: config 'enginehouse.yaml': model 'a': unknown key 'precison'" in ended.stdout
    (tmp_path / "enginehouse.yaml").write_text("cache_dir: /dev/null/cache\nmodels: {a: {source: builtin:pocket}}")
    ended = run(tmp_path, "doctor")
    assert ended.returncode == 1
    assert "cannot be written" in ended.stdout


def test_explain_names_every_runtime_with_its_numbers_or_its_reason(tmp_path: Path) -> None:
    ended = run(tmp_path, "explain", "pocket", "--json", ENGINEHOUSE_CACHE_DIR=str(tmp_path / "cache"))
    explained = json.loads(ended.stdout)
    told = {row["candidate"]["runtime"] for row in explained["candidates"]}
    told |= {row["runtime"] for row in explained["rejected"]}
    assert told == set(runtimes())
    assert explained["chosen"] == explained["candidates"][0]["key"]
    assert "not measured yet" in explained["reason"]
    shown = run(tmp_path, "explain", "pocket", ENGINEHOUSE_CACHE_DIR=str(tmp_path / "cache")).stdout
    assert explained["chosen"] in shown
    assert "not echo: not chosen on this kind of host" in shown


def test_explain_of_a_model_that_is_not_there_ends_with_one_line(tmp_path: Path) -> None:
    ended = run(tmp_path, "explain", "gpt-9")
    assert ended.returncode == 1
    assert ended.stderr == "enginehouse: The model 'gpt-9' does not exist; have: pocket\n"


@pytest.mark.parametrize(
    ("written", "reason"), [("", "has no prompts"), ('{"x": 1}', "field `messages`"), ("{", "p.jsonl")]
)
def test_bench_of_what_is_no_prompts_ends_with_one_line(tmp_path: Path, written: str, reason: str) -> None:
    (tmp_path / "p.jsonl").write_text(written)
    ended = run(tmp_path, "bench", "pocket", "--prompts", "p.jsonl")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert reason in ended.stderr


def test_bench_times_prompts_of_ones_own(tmp_path: Path) -> None:
    config = {"models": {"mine": {"source": "builtin:echo", "runtime": "echo"}}, "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "enginehouse.yaml").write_text(json.dumps(config))
    chat = {"messages": [{"role": "user", "content": "one two three four"}], "model": "gpt-9"}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(chat)}\n\n{json.dumps('a text by itself')}\n")
    ended = run(tmp_path, "bench", "mine", "--prompts", "p.jsonl", "--json")
    (explained,) = json.loads(ended.stdout)["explained"]
    assert explained["candidates"][0]["figures"]["decode"] > 0


# --- models, optimize, prune ---


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose config has two models of one source, with the first of them built by the command."""
    folder = tmp_path_factory.mktemp("optimized")
    model = {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int8"}
    models = dict.fromkeys(("pocket", "again"), model)
    config = {"cache_dir": str(folder / "cache"), "models": {**models, "other": {"source": "builtin:echo"}}}
    (folder / "enginehouse.yaml").write_text(json.dumps(config))
    ended = run(folder, "optimize", "pocket")
    assert ended.returncode == 0, ended.stderr
    assert "'pocket' for llamacpp: gguf Q8_0, 11.0 MiB -> " in ended.stdout
    lines = ended.stderr.splitlines()
    assert all(re.fullmatch(r"pocket: \w+, \d+ %, (\d+ s left|done)", line) for line in lines)
    percents = [int(re.findall(r"(\d+) %", line)[0]) for line in lines]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    return folder


def listed(folder: Path, *flags: str) -> Any:
    return json.loads(run(folder, "models", "--json", *flags).stdout)


def test_optimize_builds_once_and_anew_when_forced(optimized: Path) -> None:
    (manifest,) = optimized.glob("cache/artifacts/*/manifest.json")
    before = manifest.stat().st_ino
    assert "it was there" in run(optimized, "optimize", "pocket").stdout
    assert manifest.stat().st_ino == before
    assert "it was there" not in run(optimized, "optimize", "pocket", "--force").stdout
    assert manifest.stat().st_ino != before


def test_optimize_ends_with_one_sentence_when_it_cannot(optimized: Path) -> None:
    ended = run(optimized, "optimize", "pocket", "--precision", "Q9")
    assert ended.returncode == 1
    assert "unknown precision 'Q9'" in ended.stderr.splitlines()[-1]
    ended = run(optimized, "optimize", "pocket", "--runtime", "mxl")
    assert ended.returncode == 1
    assert "unknown runtime 'mxl'; have: " in ended.stderr.splitlines()[-1]
    assert "there is nothing to build" in run(optimized, "optimize", "other", "--runtime", "echo").stdout


def test_models_names_every_artifact_and_whose_it_is(optimized: Path) -> None:
    shown = listed(optimized)
    assert [model["name"] for model in shown["models"]] == ["pocket", "again", "other"]
    (row,) = shown["artifacts"]
    assert row["models"] == ["pocket", "again"]
    assert (row["format"], row["precision"], row["in_use"]) == ("gguf", "Q8_0", False)
    assert shown["models"][1]["artifacts"] == [row["key"]]
    assert shown["total_bytes"] > row["bytes"], "what the gate knows of the source takes room too"
    table = run(optimized, "models", COLUMNS="200").stdout
    assert "pocket, again" in table
    assert "Q8_0" in table


def test_models_verify_names_what_has_changed_and_exits_with_one(optimized: Path, tmp_path: Path) -> None:
    import shutil

    assert "all 1 artifacts are as they were built" in run(optimized, "models", "--verify").stdout
    cache = Path(shutil.copytree(optimized / "cache", tmp_path / "cache"))
    (file,) = cache.glob("artifacts/*/model.gguf")
    file.write_bytes(file.read_bytes()[:-1])
    ended = run(optimized, "models", "--verify", ENGINEHOUSE_CACHE_DIR=str(cache))
    assert ended.returncode == 1
    assert f"broken: '{file.parent.name}': model.gguf has" in ended.stdout


def test_prune_says_what_it_removed_and_what_is_left(optimized: Path, tmp_path: Path) -> None:
    import shutil

    cache = Path(shutil.copytree(optimized / "cache", tmp_path / "cache"))
    assert (
        "would remove gguf-Q8_0-"
        in run(optimized, "prune", "--budget", "0GiB", "--dry-run", ENGINEHOUSE_CACHE_DIR=str(cache)).stdout
    )
    assert (
        "0.0 MiB in 0 removed" in run(optimized, "prune", "--budget", "1GiB", ENGINEHOUSE_CACHE_DIR=str(cache)).stdout
    )
    said = run(optimized, "prune", "--budget", "0GiB", ENGINEHOUSE_CACHE_DIR=str(cache)).stdout
    assert "removed gguf-Q8_0-" in said
    assert "in 2 removed; 0.0 MiB left, 0.0 MiB in use" in said  # the artifact, and what the gate knew of its source
    assert not list((cache / "artifacts").iterdir())


@pytest.mark.parametrize("budget", ["20", "20GB", "50%", "much"])
def test_a_budget_that_is_no_size_is_refused(tmp_path: Path, budget: str) -> None:
    ended = run(tmp_path, "prune", "--budget", budget)
    assert ended.returncode == 1
    assert ended.stderr == f"enginehouse: --budget: '{budget}' is no size; give one such as 20GiB or 500MiB\n"


def test_ctrl_c_while_optimizing_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "enginehouse.server.cli.main",
        "optimize",
        "pocket",
        "--runtime",
        "llamacpp",
        "--precision",
        "int4",
    ]
    cache = tmp_path / "cache"
    building = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "ENGINEHOUSE_CACHE_DIR": str(cache)}
    )
    assert building.stderr
    assert any("check" in line for line in iter(building.stderr.readline, "")), "it ended before the quality gate"
    children = psutil.Process(building.pid).children(recursive=True)
    building.send_signal(signal.SIGINT)
    building.stderr.close()
    assert building.wait(30) == 130
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not list((cache / "artifacts").iterdir())


def test_a_shell_completes_the_commands_and_what_they_take(tmp_path: Path) -> None:
    script = run(tmp_path, "completion", "bash").stdout
    for typed, completed in (("la", "launch"), ("launch c", "claude codex continue"), ("bench --pl", "--plot")):
        words = ["enginehouse", *typed.split()]
        ask = f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}; _shtab_enginehouse; echo ${{COMPREPLY[*]}}"
        shown = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert sorted(shown.stdout.split()) == completed.split()
