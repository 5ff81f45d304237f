"""`python -m tests.server.page.screenshots`: each view, in both themes and on a phone, into docs/page/.

A few minutes: it measures the pocket model's engines first, and talks for a while, so that there is something to see.
"""

import io
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.server.page.conftest import DESK, PHONE, launched, unpacked
from tests.serving import COMMAND, Served, serve

FOLDER = Path(__file__).parents[3] / "docs" / "page"
MODELS = {
    "pocket": {"source": "builtin:pocket", "aliases": ["gpt-4o-mini"]},
    "pocket-q6": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "Q6_K"},
    "pocket-q8": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "Q8_0"},
    "pocket-int4": {"source": "builtin:pocket", "runtime": "openvino", "precision": "int4"},
    "smollm2": {"source": "builtin:smollm2", "runtime": "llamacpp"},
    "elsewhere": {"runtime": "upstream", "upstream": {"base_urls": ["http://127.0.0.1:9/v1"], "model": "large"}},
}
FRANCE = "What is the capital of France?"
CODE = "Write a Python function that adds two numbers. Only the code, please."
LOOKS = {"light": (DESK, "light"), "dark": (DESK, "dark"), "phone": (PHONE, "light"), "phone-dark": (PHONE, "dark")}
COLOURS = 128


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, launched(unpacked(Path(name))) as browser:
        folder = Path(name)
        with serve(folder, MODELS) as served:
            config = next(folder.glob("config-*.yaml"))
            subprocess.run([*COMMAND, "bench", "pocket", "--config", str(config)], check=True)
            with talking(served):
                shoot(browser, served)


@contextmanager
def talking(served: Served) -> Iterator[None]:
    """Somebody asks two models, again and again."""
    enough = threading.Event()

    def talk() -> None:
        words = [{"role": "user", "content": "Count from 1 to 20."}]
        while not enough.is_set():
            for model in ("pocket", "pocket-q8"):
                served.client.chat.completions.create(model=model, messages=words)  # type: ignore[arg-type]
            enough.wait(1.5)

    thread = threading.Thread(target=talk)
    thread.start()
    yield
    enough.set()
    thread.join()


def shoot(browser: Browser, served: Served) -> None:
    page = browser.new_page(viewport=DESK)  # type: ignore[arg-type]
    page.goto(served.root)
    prepared = {"models": models, "chat": chat, "compare": compare, "clients": None, "charts": charts, "house": house}
    for view, prepare in prepared.items():
        page.goto(f"{served.root}/#{view}")
        if prepare:
            prepare(page)
        take(page, view)


def house(page: Page) -> None:
    expect(page.get_by_role("region", name="Memory").get_by_role("img")).to_be_visible()
    expect(page.get_by_role("region", name="Runtimes").get_by_role("row").first).to_be_visible()


def models(page: Page) -> None:
    expect(page.locator(".reason").last).not_to_be_empty()
    built = page.get_by_role("article", name="Model pocket-q6")
    built.get_by_role("button", name="Load").click()
    page.get_by_role("article", name="Model pocket", exact=True).get_by_text("Every candidate").click()
    expect(built.locator(".progress")).to_contain_text("check")


def chat(page: Page) -> None:
    ask(page, "pocket", FRANCE, "high")
    ask(page, "smollm2", CODE, "")


def ask(page: Page, model: str, words: str, effort: str) -> None:
    page.get_by_label("Model", exact=True).select_option(model)
    page.get_by_label("thinking").select_option(effort)
    page.get_by_label("temperature").fill("0")
    page.get_by_label("Message").fill(words)
    page.get_by_label("Message").press("Enter")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("log").get_by_role("article", name=model).last.locator(".figures")).to_contain_text(
        "tokens"
    )


def compare(page: Page) -> None:
    page.get_by_label("Question").fill(FRANCE)
    for label, model in (("First", "pocket-q8"), ("Second", "pocket-int4")):
        page.get_by_label(label, exact=True).and_(page.locator("select")).select_option(model)
    page.get_by_role("button", name="Ask both").click()  # builds what is missing
    expect(page.get_by_role("region", name="Both in figures")).to_be_visible()
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_role("region", name="Both in figures")).to_be_visible()


def charts(page: Page) -> None:
    page.wait_for_timeout(60_000)  # for lines that are long enough to see


def take(page: Page, view: str) -> None:
    for look, (size, theme) in LOOKS.items():
        page.set_viewport_size(size)  # type: ignore[arg-type]
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        page.evaluate("scrollTo(0, 0)")
        with page.expect_response("**/metrics"):
            pass  # it draws when it has heard
        picture = Image.open(io.BytesIO(page.screenshot()))
        picture.convert("RGB").quantize(COLOURS).save(FOLDER / f"{view}-{look}.png", optimize=True)
    page.set_viewport_size(DESK)  # type: ignore[arg-type]
    page.emulate_media(color_scheme="light")


if __name__ == "__main__":
    main()
