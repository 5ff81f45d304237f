"""Clients that others wrote, in their own interpreters, against a running server; `make clients` installs them."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.serving import Served

HERE = Path(__file__).parents[1]
TABLE = (HERE.parent / "docs" / "clients.md").read_text()
PINNED = (HERE.parent / "requirements" / "clients.txt").read_text()
LOCKED = json.loads((HERE / "clients" / "package-lock.json").read_text())["packages"]
SCRIPTS = sorted(path for path in (HERE / "clients").iterdir() if path.suffix in (".py", ".mjs"))
INSTALLED = Path(os.environ.get("ENGINEHOUSE_CLIENTS", Path.home() / ".cache" / "enginehouse" / "clients"))
ALONE = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is fetched from elsewhere
SECONDS = 300


def version(script: Path, client: str) -> str:
    if script.suffix == ".mjs":
        return str(LOCKED[f"node_modules/{client}"]["version"])
    pinned = re.search(rf"^{re.escape(client)}==([^ \n]+)", PINNED, re.MULTILINE)
    assert pinned, f"requirements/clients.txt does not pin '{client}'"
    return pinned[1]


def row(script: Path) -> str:
    """The script's line in the table of docs/clients.md: its own first line, and the versions."""
    first = script.read_text().splitlines()[0].removeprefix("// ").strip('"').rstrip(".")
    clients, _, tried = first.partition(": ")
    versions = ", ".join(f"`{client}` {version(script, client)}" for client in clients.split(", "))
    return f"| {versions} | [{script.name}](../tests/clients/{script.name}) | {tried} |"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_client_of_others_works_unchanged(house: Served, script: Path, tmp_path: Path) -> None:
    if not (INSTALLED / ".node").exists():
        pytest.skip(f"no clients in '{INSTALLED}'; 'make clients' installs them")
    if script.suffix == ".mjs":  # from its text, so that it finds its packages where it is run
        command, folder = ["node", "--input-type=module", "-", house.root], Path(f"{INSTALLED}-node")
    else:  # -P: a script is named after the package it imports
        command, folder = ["python", "-P", str(script), house.root], tmp_path
    with script.open() as text:
        ran = subprocess.run(
            [str(INSTALLED / "bin" / command[0]), *command[1:]],
            cwd=folder,
            env=os.environ | ALONE | {"HF_HOME": str(tmp_path)},
            stdin=text,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert re.findall(r"^ok: ", ran.stdout, re.MULTILINE)


def test_the_docs_list_every_client_with_its_version_and_what_was_tried() -> None:
    rows = "\n".join(row(script) for script in SCRIPTS)
    assert rows in TABLE, f"the table should be:\n{rows}"
