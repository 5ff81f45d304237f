"""What a model has read of a prompt outlives its worker and its server, and is listed and pruned like what is built."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx

from tests.serving import COMMAND, Served, serve

RULES = "You are a helpful assistant. Answer the user's questions. " * 60
SECONDS = 120


def ask(served: Served) -> int:
    """Tokens of the prompt that were not read again."""
    usage = served.client.chat.completions.create(
        model="pocket",
        messages=[{"role": "system", "content": RULES}, {"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=5,
    ).usage
    assert usage and usage.prompt_tokens_details
    return usage.prompt_tokens_details.cached_tokens or 0


def test_a_prompt_is_read_once_though_its_worker_is_killed_and_its_server_ends(tmp_path: Path) -> None:
    models = {"pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int8"}}
    with serve(tmp_path, models) as served:
        ask(served)
        until = time.monotonic() + SECONDS
        while not list((tmp_path / "cache" / "kv").rglob("*.kv")):  # nobody must ask for a while
            assert time.monotonic() < until
            time.sleep(0.5)
        worker = served.worker()
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(10)
        assert ask(served) > 500
    with serve(tmp_path, models) as served:
        assert ask(served) > 500
        assert 'runtime="llamacpp",tier="disk"' in httpx.get(f"{served.root}/metrics").text
    config = next(tmp_path.glob("config-*.yaml"))
    for command, words in ((["models"], "MiB prompts"), (["prune", "--budget", "0GiB"], "removed llamacpp-")):
        done = subprocess.run([*COMMAND, *command, "--config", str(config)], capture_output=True, text=True, check=True)
        assert words in done.stdout
    assert not list((tmp_path / "cache" / "kv").iterdir())
