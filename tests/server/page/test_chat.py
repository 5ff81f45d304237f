"""The chat: what is asked, answered, stopped and refused, and that what a model writes is only ever text."""

import json
import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.server.page.conftest import Open
from tests.serving import Served

FRANCE, PARIS = "What is the capital of France?", "The capital of France is Paris."
LONG = "one two three four five six seven eight nine ten " * 20
HOSTILE = '<img src=x onerror="window.ran = 1"><script>window.ran = 2</script>'
WEATHER = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
CALL = '<tool_call>{"name": "weather", "arguments": {"town": "Oslo"}}</tool_call>'
NAMED = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
PERSON = json.dumps(NAMED | {"additionalProperties": False})


@pytest.fixture
def chat(opened: Open, served: Served) -> Page:
    return opened(f"{served.root}/#chat")


def ask(chat: Page, model: str, words: str) -> Locator:
    """The turn that answers."""
    expect(chat.get_by_role("button", name="Send")).to_be_visible()  # what was asked before is answered
    chat.get_by_label("Model", exact=True).select_option(model)
    message = chat.get_by_label("Message")
    message.fill(words)
    message.press("Enter")
    return chat.get_by_role("log").get_by_role("article", name=model).last


def test_a_whole_chat(chat: Page) -> None:
    chat.get_by_label("temperature").fill("0")
    answer = ask(chat, "pocket", FRANCE)
    expect(answer).to_contain_text(PARIS)
    expect(answer).to_contain_text(re.compile(r"\d+ \+ \d+ tokens · .*llamacpp / cpu / Q8_0"))
    ask(chat, "pocket", "And what is the capital of Italy?")
    expect(chat.get_by_role("log").get_by_role("article", name="pocket")).to_have_count(2)
    expect(chat.get_by_role("log")).to_contain_text("Rome")
    chat.get_by_role("button", name="New chat").click()
    expect(chat.get_by_role("log").get_by_role("article")).to_have_count(0)


def test_what_is_set_is_sent(chat: Page) -> None:
    with chat.expect_request("**/v1/chat/completions") as sent:
        chat.get_by_label("system prompt").fill("Be brief.")
        chat.get_by_label("most tokens").fill("3")
        chat.get_by_label("stop texts").fill("END")
        answer = ask(chat, "echo", "one two three")
    body: Any = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["max_tokens"], body["stop"], "top_p" in body) == (3, ["END"], False)
    expect(answer).to_contain_text("cut off at the length limit")


def test_stop_ends_the_answer_here_and_in_the_engine(chat: Page, served: Served) -> None:
    answer = ask(chat, "slow", LONG)
    expect(answer).to_contain_text("one two")
    chat.get_by_role("button", name="Stop").click()
    expect(answer).to_contain_text("stopped")
    expect(chat.get_by_role("button", name="Send")).to_be_visible()
    chat.goto(f"{served.root}/#house")
    expect(chat.locator(".tile", has_text="requests under way")).to_contain_text(re.compile(r"^0"))
    assert httpx.get(f"{served.root}/v1/models/slow").json()["status"]["requests"] == 0


def test_what_a_model_writes_is_text(chat: Page) -> None:
    answer = ask(chat, "echo", f"{HOSTILE}\n```html\n{HOSTILE}\n```\nend")
    expect(answer).to_contain_text("end")
    assert answer.locator("div.prose > p").first.text_content() == HOSTILE
    assert answer.locator("code").text_content() == HOSTILE
    assert chat.locator("main img, main script").count() == 0
    assert chat.evaluate("window.ran") is None


def test_an_error_is_the_servers_sentence_and_can_be_asked_again(chat: Page) -> None:
    answer = ask(chat, "broken", "boom")
    expect(answer.get_by_role("alert")).to_contain_text(re.compile("died|failed|broke"))
    chat.get_by_label("Model", exact=True).select_option("echo")
    answer.get_by_role("button", name="Ask again").click()
    expect(chat.get_by_role("log").get_by_role("article", name="echo").last).to_contain_text("boom")


def test_a_value_that_is_refused_is_named(chat: Page) -> None:
    chat.get_by_label("top p").fill("7")
    expect(ask(chat, "echo", "hi").get_by_role("alert")).to_contain_text("top_p")


def test_what_is_no_json_is_named_before_it_is_sent(chat: Page) -> None:
    chat.get_by_label("tools, as JSON").fill("[{")
    expect(ask(chat, "echo", "hi").get_by_role("alert")).to_contain_text("'tools' is not JSON")


def test_a_tool_is_called_and_its_result_told(chat: Page) -> None:
    chat.get_by_label("tools, as JSON").fill(WEATHER)
    answer = ask(chat, "echo", CALL)
    expect(answer.locator(".call")).to_have_text('weather {"town": "Oslo"}')
    answer.get_by_label("What weather gave").fill("rain")
    answer.get_by_role("button", name="Tell the model").click()
    expect(chat.get_by_role("log").get_by_role("article", name="echo").last.locator("div.prose")).to_have_text("rain")


def test_an_answer_keeps_to_a_schema(chat: Page) -> None:
    chat.get_by_label("JSON schema of the answer").fill(PERSON)
    answer = ask(chat, "pocket", "As JSON: Tara is 38 years old and lives in Washington.")
    expect(answer.locator("div.prose")).to_have_text(re.compile(r'^\{\s*"name":\s*"[^"]*"\s*\}$'))


def test_a_thought_is_folded(chat: Page) -> None:
    chat.get_by_label("thinking").select_option("high")
    answer = ask(chat, "pocket", "Take away the fruit: apple, chair, pear.")
    expect(answer.locator(".figures")).to_contain_text("tokens")
    thoughts = answer.get_by_role("group")
    expect(thoughts.get_by_text(re.compile("^Thought for"))).to_be_visible()
    expect(thoughts.locator("p")).to_be_hidden()
    thoughts.locator("summary").press("Enter")
    expect(thoughts.locator("p")).to_be_visible()


def test_a_whole_chat_without_a_mouse(opened: Open, served: Served) -> None:
    page = opened(served.root)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Chat")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.type("slow")  # of the list of models
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Message")).to_be_focused()
    page.keyboard.type(LONG)
    page.keyboard.press("Enter")
    answer = page.get_by_role("log").get_by_role("article", name="slow")
    expect(answer).to_contain_text("one")
    page.keyboard.press("Escape")
    expect(answer).to_contain_text("stopped")
    expect(page.get_by_label("Message")).to_be_focused()
