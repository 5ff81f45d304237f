"""Files and folders that the pages name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("config", "optimize", "runtimes", "server", "tests")
FILES = {file.name for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_is_there(page: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*|\w+\.py)`", page.read_text())
    missing = [path for path in named if not (path in FILES or (ROOT / path).exists() or "NAME" in path)]
    assert not missing
