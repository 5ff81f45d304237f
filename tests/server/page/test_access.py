"""The page for everybody: axe-core finds nothing serious, it fits a phone, it is light or dark as asked."""

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.conftest import AXE, Open
from tests.serving import Served, serve

VIEWS = ("house", "models", "chat", "compare", "charts", "clients")
NARROW = {"width": 320, "height": 640}
WORDS = "here is code:\n```\n" + "a_long_line_of_code " * 20 + "\n```\nand a_very_long_word_" + "x" * 200


def show(page: Page, view: str) -> None:
    """With something in it."""
    page.goto(f"{page.url.partition('#')[0]}#{view}")
    main = page.locator("main")
    match view:
        case "house":
            expect(main.get_by_role("region", name="Runtimes").get_by_role("row").first).to_be_visible()
        case "models":
            expect(main.locator(".reason").last).not_to_be_empty()
            for summary in main.locator("summary").all():
                summary.click()
        case "chat":
            page.get_by_label("Message").fill(WORDS)
            page.get_by_label("Message").press("Enter")
            expect(page.get_by_role("button", name="Send")).to_be_visible()  # it has answered
            page.get_by_label("Message").fill("boom")
            page.get_by_label("Model", exact=True).select_option("broken")
            page.get_by_label("Message").press("Enter")
            expect(main.get_by_role("alert")).to_be_visible()
            if not main.get_by_label("temperature").is_visible():
                main.get_by_text("System prompt, sampling").click()
        case "compare":
            page.get_by_label("Question").fill(WORDS)
            page.get_by_role("button", name="Ask both").click()
            expect(main.get_by_role("region", name="Both in figures")).to_be_visible()
        case "charts":
            expect(main.get_by_role("img").first).to_be_visible()
        case "clients":
            expect(main.locator("pre").first).to_be_visible()


def findings(page: Page) -> list[str]:
    """What axe-core finds that is serious or worse."""
    page.evaluate(AXE.read_text())
    found: dict[str, Any] = page.evaluate("axe.run()")
    return [
        json.dumps([one["id"], one["help"], [node["html"][:200] for node in one["nodes"]]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    models = {
        "echo": {"source": "builtin:echo"},
        "broken": {"source": "builtin:echo", "options": {"echo": {"fails_on": "boom"}}},
        "a-model-with-a-name/that-is-as-long-as-some-names-on-the-hub-are-these-days-GGUF": {"source": "builtin:echo"},
    }
    with serve(tmp_path_factory.mktemp("access"), models) as served:
        yield served


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
def test_no_view_has_a_serious_finding(opened: Open, quick: Served, theme: str, phone: bool) -> None:
    page = opened(quick.root, phone=phone, theme=theme)
    for view in VIEWS:
        show(page, view)
        assert not findings(page), view


def test_the_dialog_has_none(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serve(tmp_path_factory.mktemp("keyed"), {"echo": {"source": "builtin:echo"}}, api_keys=["k"]) as served:
        page = opened(served.root)
        expect(page.get_by_role("dialog")).to_be_visible()
        assert not findings(page)


def test_no_view_is_wider_than_a_phone(opened: Open, quick: Served) -> None:
    page = opened(quick.root, phone=True)
    for size in (page.viewport_size, NARROW):
        assert size
        page.set_viewport_size({"width": size["width"], "height": size["height"]})
        for view in VIEWS:
            show(page, view)
            assert page.evaluate("document.documentElement.scrollWidth") == size["width"], view
        page.reload()


def test_the_theme_is_the_systems_until_another_is_chosen(opened: Open, quick: Served) -> None:
    page = opened(quick.root, theme="dark")
    switch = page.locator("#theme")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    expect(switch).to_have_text("Theme: auto")
    switch.click()
    light = page.evaluate(ground)
    assert light != dark
    switch.click()
    assert page.evaluate(ground) == dark
    switch.press("Enter")
    switch.press("Enter")
    page.reload()
    expect(switch).to_have_text("Theme: light")
    assert page.evaluate(ground) == light


def test_every_view_has_its_title_and_the_way_back(opened: Open, quick: Served) -> None:
    page = opened(quick.root)
    for view in VIEWS:
        page.get_by_role("link", name=view.capitalize()).click()
        expect(page.get_by_role("link", name=view.capitalize())).to_have_attribute("aria-current", "page")
        expect(page).to_have_title(f"{view.capitalize()} · Enginehouse")
    page.go_back()
    expect(page).to_have_title("Charts · Enginehouse")
