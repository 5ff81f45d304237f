"""Coding agents, headless in a fresh home: what they are told is what echo says, and so calls."""

import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

INSTALLED = Path(os.environ.get("ENGINEHOUSE_CLIENTS", Path.home() / ".cache" / "enginehouse" / "clients"))
NODE, MODULES = INSTALLED / "bin" / "node", Path(f"{INSTALLED}-node") / "node_modules"
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)  # one dot
UNSEEN = "an image stood here, and is left out"
SECONDS = 120


def call(name: str, **arguments: object) -> str:
    """What makes echo call a tool. No blank in it, for some agents quote what has any."""
    said = json.dumps({"name": name, "arguments": arguments}, separators=(",", ":")).replace(" ", r"\u0020")
    return f"do<tool_call>{said}</tool_call>"


class Agent:
    """One of them, in a home and a project of its own."""

    def __init__(self, *command: str | Path, **environment: str) -> None:
        self.root = sys.argv[1]
        self._home = tempfile.TemporaryDirectory(prefix="agent-", ignore_cleanup_errors=True)
        self.home = Path(self._home.name)
        self.project = self.home / "project"
        self.project.mkdir()
        self._command = [str(part) for part in command]
        path = f"{INSTALLED / 'bin'}:{os.environ['PATH']}"
        self._environment = {"PATH": path, "HOME": str(self.home), "TERM": "dumb", **environment}

    def says(self, *arguments: str) -> str:
        """What it writes. One that fails ends the script with what it wrote."""
        ran = subprocess.run(
            [*self._command, *arguments],
            cwd=self.project,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
        return ran.stdout


def holds(said: str, expected: str) -> None:
    assert expected in said, said
