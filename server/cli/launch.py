"""`enginehouse launch AGENT`: a coding agent that is installed, with the address, key and model that it needs.

Everything is said by arguments and variables of the one process, but for Continue, which wants a file: that lies in the
cache. No file of the user's is read or written.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from enginehouse.config.schema import Config
from enginehouse.server.cli.client import NO_KEY, Address, Failed, address, connected, models, started

NAME = "enginehouse"  # of the provider, where an agent wants one


class Settings(msgspec.Struct, frozen=True):
    arguments: list[str] = []
    environment: dict[str, str] = {}
    file: str = ""  # what the file holds whose path is the last argument


class Agent(msgspec.Struct, frozen=True):
    program: str
    install: str
    settings: Callable[[Address, str], Settings]


def claude(at: Address, model: str) -> Settings:
    tiers = ("MODEL", "DEFAULT_OPUS_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_HAIKU_MODEL", "SMALL_FAST_MODEL")
    named = {f"ANTHROPIC_{tier}": model for tier in tiers}
    less = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "CLAUDE_CODE_SUBAGENT_MODEL": model}
    return Settings(environment={"ANTHROPIC_BASE_URL": at.root, "ANTHROPIC_AUTH_TOKEN": at.key} | named | less)


def codex(at: Address, model: str) -> Settings:
    provider = f'{{name="{NAME}",base_url="{at.root}/v1",wire_api="responses",env_key="ENGINEHOUSE_API_KEY"}}'
    chosen = ["-c", f"model_provider={NAME}", "-c", f"model_providers.{NAME}={provider}"]
    return Settings(["-m", model, *chosen], {"ENGINEHOUSE_API_KEY": at.key})


def opencode(at: Address, model: str) -> Settings:
    options = {"baseURL": f"{at.root}/v1", "apiKey": at.key}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": NAME,
        "options": options,
        "models": {model: {"name": model}},
    }
    named = f"{NAME}/{model}"
    config = {"model": named, "small_model": named, "provider": {NAME: provider}}
    return Settings(environment={"OPENCODE_CONFIG_CONTENT": json.dumps(config)})


def qwen(at: Address, model: str) -> Settings:
    named = {"OPENAI_BASE_URL": f"{at.root}/v1", "OPENAI_API_KEY": at.key, "OPENAI_MODEL": model}
    return Settings(["--auth-type", "openai", "--model", model], named)


def aider(at: Address, model: str) -> Settings:
    named = {"OPENAI_API_BASE": f"{at.root}/v1", "OPENAI_API_KEY": at.key}
    return Settings(["--model", f"openai/{model}", "--no-show-model-warnings", "--no-check-update"], named)


def continue_(at: Address, model: str) -> Settings:
    entry = {"name": model, "provider": "openai", "model": model, "apiBase": f"{at.root}/v1", "apiKey": at.key}
    config = {"name": NAME, "version": "1.0.0", "schema": "v1", "models": [entry]}
    return Settings(["--config"], file=json.dumps(config))  # JSON is YAML, too


AGENTS = {
    "claude": Agent("claude", "npm install -g @anthropic-ai/claude-code", claude),
    "codex": Agent("codex", "npm install -g @openai/codex", codex),
    "opencode": Agent("opencode", "npm install -g opencode-ai", opencode),
    "qwen": Agent("qwen", "npm install -g @qwen-code/qwen-code", qwen),
    "aider": Agent("aider", "pip install aider-chat", aider),
    "continue": Agent("cn", "npm install -g @continuedev/cli", continue_),
}


def run(config: Config, file: str | None, name: str, model: str | None, further: list[str]) -> int:
    """The agent's exit status. `further`: its own arguments."""
    agent, at = AGENTS[name], address(config)
    program = shutil.which(agent.program)
    if program is None:
        raise Failed(f"'{agent.program}' is not installed here; {agent.install}")
    with started(at, config, file):
        with connected(at) as client:
            listed = models(client)
        known = [alias for one in listed for alias in (one["id"], *one["aliases"])]
        if model and model not in known:
            raise Failed(f"there is no model '{model}'; have: {', '.join(known)}")
        settings = agent.settings(at, model or listed[0]["id"])
        arguments = [*settings.arguments, *kept(config, name, settings.file)]
        shown = " ".join(f"{key}={value}" for key, value in settings.environment.items())
        shown = f"{shown} {agent.program} {' '.join(arguments)}".strip()
        print(shown if at.key == NO_KEY else shown.replace(at.key, "..."), file=sys.stderr)
        try:
            return subprocess.run([program, *arguments, *further], env=os.environ | settings.environment).returncode
        except KeyboardInterrupt:
            return 130


def kept(config: Config, name: str, text: str) -> list[str]:
    if not text:
        return []
    path = Path(config.cache_dir).expanduser() / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return [str(path)]
