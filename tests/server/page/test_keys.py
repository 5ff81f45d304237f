"""The key: asked for when the server wants one, kept for as long as the tab is open; and a server that is gone."""

import pytest
from playwright.sync_api import Page, expect

from tests.server.page.conftest import Open
from tests.serving import serve

ECHO = {"echo": {"source": "builtin:echo"}}


def give(page: Page, key: str) -> None:
    page.get_by_role("dialog").get_by_label("API key").fill(key)
    page.get_by_role("button", name="Use it").click()


def test_a_key_is_asked_for_until_it_is_a_good_one(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serve(tmp_path_factory.mktemp("keyed"), ECHO, api_keys=["good"]) as served:
        page = opened(f"{served.root}/#chat")
        dialog = page.get_by_role("dialog", name="An API key, please")
        expect(dialog).to_contain_text("a valid API key is needed")
        expect(dialog.get_by_label("API key")).to_be_focused()
        with page.expect_response("**/v1/models"):
            give(page, "bad")
        expect(dialog).to_be_visible()
        give(page, "good")
        expect(dialog).to_be_hidden()
        expect(page.get_by_label("Model", exact=True)).to_have_value("echo")
        page.get_by_label("Message").fill("one two")
        page.get_by_label("Message").press("Enter")
        expect(page.get_by_role("log").get_by_role("article", name="echo")).to_contain_text("one two")
        assert page.evaluate("[sessionStorage.getItem('api-key'), JSON.stringify(localStorage)]") == [
            "good",
            '{"theme":"auto"}',
        ]
        page.reload()
        expect(page.get_by_label("Model", exact=True)).to_have_value("echo")


def test_who_gives_no_key_is_asked_once_and_told_what_is_missing(
    opened: Open, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serve(tmp_path_factory.mktemp("keyed"), ECHO, api_keys=["good"]) as served:
        page = opened(served.root)
        page.get_by_role("dialog").press("Escape")
        expect(page.get_by_role("alert")).to_contain_text("a valid API key is needed")
        with page.expect_response("**/metrics"):
            pass
        expect(page.get_by_role("dialog")).to_be_hidden()
        page.get_by_role("button", name="Key").click()
        give(page, "good")
        expect(page.locator("#notice")).to_be_hidden()
        expect(page.locator("main")).to_contain_text("models loaded")


def test_a_server_that_is_gone_is_missed(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serve(tmp_path_factory.mktemp("gone"), ECHO) as served:
        page = opened(served.root)
        expect(page.locator("main")).to_contain_text("models loaded")
    expect(page.get_by_role("alert")).to_contain_text(f"no server answers at {served.root}")
