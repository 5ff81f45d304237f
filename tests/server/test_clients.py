"""Clients that others wrote, in their own interpreters, against a running server; `make clients` installs them."""

from pathlib import Path

import pytest

from tests.client_results import BEGIN, END, INSTALLED, PAGE, SCRIPTS, header, read, run, table, versions
from tests.sdk_methods import BEGIN as METHODS_BEGIN
from tests.sdk_methods import END as METHODS_END
from tests.sdk_methods import results
from tests.sdk_methods import table as methods_table
from tests.serving import Served


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_client_of_others_works_unchanged_and_the_docs_say_so(house: Served, script: str, tmp_path: Path) -> None:
    if not (INSTALLED / ".node").exists():
        pytest.skip(f"no clients in '{INSTALLED}'; 'make clients' installs them")
    ran, written = run(script, house, tmp_path), read().get(script)
    remedy = f"python -m tests.client_results {script}; python -m tests.client_results --page"
    assert written is None or ran.checks == written.checks, remedy


def test_the_page_of_clients_is_what_came_of_them_in_the_versions_that_are_pinned() -> None:
    results = read()
    assert {script: (one.versions, one.settings) for script, one in results.items()} == {
        script: (versions(script), header(script)[1]) for script in results
    }
    assert f"{BEGIN}{table(results)}{END}" in PAGE.read_text(), "python -m tests.client_results --page"


def test_every_method_of_openais_and_anthropics_packages_does_what_the_docs_say(house: Served) -> None:
    written = f"{METHODS_BEGIN}{methods_table(results(house))}{METHODS_END}"
    assert written in PAGE.read_text(), "python -m tests.sdk_methods"
