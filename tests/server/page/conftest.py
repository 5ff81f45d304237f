"""The page in headless Chromium, which `make clients` installs with axe-core."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.client_results import INSTALLED
from tests.serving import Served, serve

NODE = Path(f"{INSTALLED}-node")
CHROMIUM = NODE / "node_modules" / "@sparticuz" / "chromium"
AXE = NODE / "node_modules" / "axe-core" / "axe.min.js"
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
WHERE = 'import chromium from "@sparticuz/chromium"; console.log(await chromium.executablePath());'
DESK, PHONE = {"width": 1200, "height": 800}, {"width": 390, "height": 844}
WAIT_MS = 60_000  # for what a model is to be loaded or built for

expect.set_options(timeout=WAIT_MS)
Open = Callable[..., Page]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not CHROMIUM.exists() or not AXE.exists():
        pytest.skip(f"no Chromium or no axe-core in '{NODE}'; 'make clients' installs them")
    return unpacked(tmp_path_factory.mktemp("chromium"))


def unpacked(folder: Path) -> Path:
    command = [str(INSTALLED / "bin" / "node"), "--input-type=module", "-e", WHERE]
    environment = os.environ | {"TMPDIR": str(folder)}
    return Path(
        subprocess.run(command, cwd=NODE, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    )


@contextmanager
def launched(chromium: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


# Not for longer than a module: other tests in this process have loops of their own.
@pytest.fixture(scope="module")
def browser(chromium: Path) -> Iterator[Browser]:
    with launched(chromium) as found:
        yield found


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens the page of a server. At the end, nothing may stand in its console: no violation of the policy among it."""
    wrong: list[str] = []
    pages: list[Page] = []

    def show(url: str, phone: bool = False, theme: str = "light") -> Page:
        context = browser.new_context(viewport=PHONE if phone else DESK, color_scheme=theme)  # type: ignore[arg-type]
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.context.close()
    refusals = [text for text in wrong if not text.startswith("Failed to load resource")]  # which tests ask for
    assert not refusals


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Engines that answer at once, slowly, and not at all, and a model of which nothing was built yet."""
    models = {
        "echo": {"source": "builtin:echo", "aliases": ["gpt-4o-mini"]},
        "slow": {"source": "builtin:echo", "options": {"echo": {"decode_rate": 20}}},
        "broken": {"source": "builtin:echo", "options": {"echo": {"fails_on": "boom"}}},
        "pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int8"},
        "pocket-f32": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "f32"},
        "nowhere": {"source": "./no-such-folder"},
    }
    with serve(tmp_path_factory.mktemp("page"), models) as running:
        yield running
