"""What a stranger meets first: pages that are short, links that lead somewhere, one set of checks."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from enginehouse.runtimes.worker.protocol import ToServer, ToWorker

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "config").rglob("*.md")])
LONGEST = {"README.md": 120, "ARCHITECTURE.md": 110, "CONTRIBUTING.md": 110}
DECISIONS = (ROOT / "DECISIONS.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What its headings are called in links, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize(("page", "lines"), LONGEST.items())
def test_the_first_pages_are_pages(page: str, lines: int) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= lines


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"]({page.relative_to(ROOT)})" in readme, page.name


def test_a_commit_is_checked_by_what_make_check_runs() -> None:
    variables = dict(re.findall(r"^(\w+) := (.+)$", MAKEFILE, re.MULTILINE))
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe
    checks = [line.strip() for line in recipe[1].splitlines()]
    for name in ("BIN", "VENV"):
        checks = [check.replace(f"$({name})", variables[name]) for check in checks]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == checks


def test_every_message_on_the_wire_is_in_the_architecture() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for message in get_args(ToWorker | ToServer):
        assert f"`{message.__name__}`" in page, message.__name__


def test_decisions_are_newest_first_short_and_in_the_index() -> None:
    index, *entries = re.split(r"^(?=## \d{4}-)", DECISIONS, flags=re.MULTILINE)
    dates = [entry[3:13] for entry in entries]
    assert dates == sorted(dates, reverse=True)
    for entry in entries:
        heading, *lines = entry.rstrip().splitlines()
        assert entry.endswith("\n\n") or entry is entries[-1], heading
        assert len(lines) <= 10, heading
    listed = re.findall(r"\]\(#([^)]+)\)", index)
    assert sorted(listed) == sorted(anchor for anchor in anchors(ROOT / "DECISIONS.md") if anchor[:2] == "20")


def test_the_license_is_the_one_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE"]
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
