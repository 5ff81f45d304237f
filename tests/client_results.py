"""What came of each client of others: kept in docs/clients.json, and the table of docs/clients.md made of it.

`python -m tests.client_results [SCRIPT ...]` runs those that `make clients` installed against a server of its own, then
`--page` writes the table.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.overheard import overheard
from tests.serving import Served, serve

HERE = Path(__file__).parent
FILE = HERE.parent / "docs" / "clients.json"
PAGE = FILE.with_suffix(".md")
BEGIN, END = "<!-- made of clients.json by the command above -->\n", "<!-- end -->\n"
SCRIPTS = {
    str(path.relative_to(HERE / "clients")): path
    for path in sorted((HERE / "clients").glob("**/*"))
    if path.suffix in (".py", ".mjs") and path.name != "__init__.py"
}
INSTALLED = Path(os.environ.get("ENGINEHOUSE_CLIENTS", Path.home() / ".cache" / "enginehouse" / "clients"))
LOCKED = json.loads((HERE / "clients" / "package-lock.json").read_text())["packages"]
PINNED = "".join((HERE.parent / "requirements" / f"{name}.txt").read_text() for name in ("clients", "aider"))
ALONE = {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # nothing is fetched from elsewhere
SECONDS = 400
MODELS = {
    "pocket": {"source": "builtin:pocket", "runtime": "llamacpp"},
    "agent": {"source": "builtin:echo", "context": 200_000},  # calls what it is told to
}


class Result(msgspec.Struct, frozen=True):
    versions: dict[str, str]  # of what the script runs, by package
    date: str
    routes: list[str]  # that were asked for
    checks: list[str]  # that passed: all of the script
    settings: str


def read() -> dict[str, Result]:
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Result]) if FILE.exists() else {}


def write(results: dict[str, Result]) -> None:
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(results.items()))), indent=1) + b"\n")


def header(script: str) -> tuple[list[str], str]:
    """The packages that a script is about, by its first line, and what its second paragraph says of their settings."""
    text = SCRIPTS[script].read_text()
    lines = text.split('"""')[1] if script.endswith(".py") else re.sub("^// ?", "", text.split("\n\n")[0], flags=re.M)
    first, _, settings = lines.strip().partition("\n")
    return first.partition(": ")[0].split(", "), " ".join(settings.split())


def versions(script: str) -> dict[str, str]:
    """As they are pinned."""
    node = script.endswith(".mjs") or script.startswith("agents/")
    return {client: node_version(client) if node else python_version(client) for client in header(script)[0]}


def node_version(client: str) -> str:
    return str(LOCKED[at]["version"]) if (at := f"node_modules/{client}") in LOCKED else python_version(client)


def python_version(client: str) -> str:
    pinned = re.search(rf"^{re.escape(client)}==([^ \n]+)", PINNED, re.MULTILINE)
    assert pinned, f"no file in requirements/ pins '{client}'"
    return pinned[1]


def run(script: str, served: Served, folder: Path) -> Result:
    """As its users run it. Raises AssertionError with what it wrote when a check fails."""
    path = SCRIPTS[script]
    with overheard(int(served.root.rpartition(":")[2])) as (root, routes), path.open() as text:
        if script.startswith("agents/"):  # it starts programs, and needs nothing of theirs
            module = f"tests.clients.agents.{path.stem}"
            command, where = [sys.executable, "-m", module, root], HERE.parent
        elif path.suffix == ".mjs":  # from its text, so that it finds its packages where it is run
            command = [str(INSTALLED / "bin" / "node"), "--input-type=module", "-", root]
            where = Path(f"{INSTALLED}-node")
        else:  # -P: a script is named after the package it imports
            command, where = [str(INSTALLED / "bin" / "python"), "-P", str(path), root], folder
        environment = os.environ | ALONE | {"HF_HOME": str(folder)}
        ran = subprocess.run(
            command, cwd=where, env=environment, stdin=text, capture_output=True, text=True, timeout=SECONDS
        )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    checks = re.findall(r"^ok: (.*)", ran.stdout, re.MULTILINE)
    assert checks, f"'{script}' says of nothing that it works"
    today = datetime.date.today().isoformat()
    return Result(versions(script), today, sorted(routes), checks, header(script)[1])


def table(results: dict[str, Result]) -> str:
    """The generated part of the page."""
    rows = [["client", "version", "routes", "what works", "settings"], ["---"] * 5]
    for script, one in sorted(results.items(), key=lambda pair: (pair[0].partition("/")[0] != "agents", pair[0])):
        name = "<br>".join(f"[{client}](../tests/clients/{script})" for client in one.versions)
        routes = "<br>".join(f"`{route}`" for route in one.routes)
        rows.append([name, "<br>".join(one.versions.values()), routes, "; ".join(one.checks), one.settings])
    lines = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    first, last = (pick(one.date for one in results.values()) for pick in (min, max))
    missing = [f"[{script}](../tests/clients/{script})" for script in SCRIPTS if script not in results]
    rest = f" Not run for this table, though with the tests: {', '.join(missing)}." if missing else ""
    return f"{lines}\n\nRun from {first} to {last}.{rest}\n"


def write_page() -> None:
    before, _, after = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table(read())}{END}{after.partition(END)[2]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT")
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if arguments.page:
        write_page()
        return
    with tempfile.TemporaryDirectory() as temporary, serve(Path(temporary), MODELS) as served:
        for script in arguments.scripts or SCRIPTS:
            began = time.monotonic()
            write(read() | {script: run(script, served, Path(temporary))})
            print(f"{script}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
