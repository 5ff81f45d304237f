"""Roles in an order that a template does not take: put in a form that it takes, with nothing lost of what was said."""

from pathlib import Path
from typing import Any

import pytest

from enginehouse import config
from enginehouse.runtimes.contract import Facts
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.worker.prompt import render

CALLS = "{# <tool_call> #}"  # else the tools are ours to list, and the user's messages joined for that
CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
FIRST_ONLY = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)
ALTERNATING = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}\n"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)
DROPPING = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}<{{ m.role }}>{{ m.content }}\n"
    "{% endif %}{% endfor %}"
)
HEAD_OF_ALL = (
    "<system>{% for m in messages if m.role == 'system' %}{{ m.content }} {% endfor %}\n"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)
POCKET = (Path(config.__file__).parent / "pocket" / "chat_template.jinja").read_text()


def written(template: str | None, *said: tuple[str, str], tools: Any = None) -> str:
    facts = Facts(1000, 1, 256, template, "", "", "cpu", ())
    return render(facts, [{"role": role, "content": text} for role, text in said], tools, {})


AGENT = (("system", "head"), ("user", "hello"), ("system", "today"))
GONE_ON = (*AGENT, ("assistant", "hi"), ("user", "and"), ("user", "now"))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<system>head\n<user>hello\n<system>today\n<assistant>hi\n<user>and\n<user>now\n"),
        (FIRST_ONLY, "<system>head\n<user>hello\n<user>today\n<assistant>hi\n<user>and\n<user>now\n"),
        (DROPPING, "<system>head\n<user>hello\n<user>today\n<assistant>hi\n<user>and\n<user>now\n"),
        (HEAD_OF_ALL, "<system>head <user>hello\n<user>today\n<assistant>hi\n<user>and\n<user>now\n"),
        (ALTERNATING, "<system>head\n<user>hello\n\ntoday\n<assistant>hi\n<user>and\n\nnow\n"),
    ],
    ids=["takes it", "first only", "drops it", "collects it", "alternates"],
)
def test_a_system_message_in_the_middle_stays_where_it_was_said(template: str, expected: str) -> None:
    assert written(CALLS + template, *GONE_ON) == expected


@pytest.mark.parametrize("template", [CHATML, FIRST_ONLY, DROPPING, HEAD_OF_ALL, ALTERNATING, POCKET, None])
def test_a_prompt_begins_as_that_of_the_turn_before(template: str | None) -> None:
    first, later = written(template, *AGENT), written(template, *GONE_ON)
    assert "today" in first
    assert later.startswith(first.removesuffix("Assistant:").partition("<|im_start|>assistant")[0])


def test_several_system_messages_at_the_head_are_one_where_the_template_takes_one() -> None:
    assert written(FIRST_ONLY, ("system", "a"), ("system", "b"), ("user", "c")) == "<system>a\n\nb\n<user>c\n"
    assert written(CHATML, ("system", "a"), ("system", "b"), ("user", "c")) == "<system>a\n<system>b\n<user>c\n"


def test_a_head_is_the_users_where_the_template_knows_no_system_messages() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + ALTERNATING
    said = (("system", "head"), ("user", "hello"), ("assistant", "hi"), ("user", "and"))
    assert written(CALLS + refusing, *said) == "<user>head\n\nhello\n<assistant>hi\n<user>and\n"


def test_tools_are_listed_at_the_head_also_where_a_system_message_comes_later() -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    text = written(CHATML, ("user", "hello"), ("system", "today"), tools=[tool])
    assert text.index("look_up") < text.index("hello") < text.index("today")


def test_what_a_template_refuses_in_every_form_is_refused_in_its_words() -> None:
    refuses = "{{ raise_exception('never') }}"
    with pytest.raises(Refused, match="never"):
        written(refuses, *AGENT)


# Mistral's rule: calls and results do not count, so that the assistant must speak after them.
IN_TURN = (
    "{% set ns = namespace(at=0) %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.at % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{% set ns.at = ns.at + 1 %}{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<user>hello\n<assistant>\n<tool>1\n<user>and\n<system>today\n<assistant>hi\n<user>now\n"),
        (FIRST_ONLY, "<user>hello\n<assistant>\n<tool>1\n<user>and\n<user>today\n<assistant>hi\n<user>now\n"),
        (IN_TURN, "<user>hello\n<assistant>\n<tool>1\n\nand\n<system>today\n<assistant>hi\n<user>now\n"),
    ],
    ids=["takes it", "first only", "in turn"],
)
def test_what_is_said_behind_a_result_joins_it_where_the_assistant_must_speak(template: str, expected: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said: list[dict[str, Any]] = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "user", "content": "and"},
        {"role": "system", "content": "today"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "now"},
    ]
    facts = Facts(1000, 1, 256, CALLS + template, "", "", "cpu", ())
    assert render(facts, said, None, {}) == expected
