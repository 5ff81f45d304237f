"""System messages in the middle, and several messages of the user in a row: what a chat template makes of them is tried
out on it, and what it will not take is put in a form that it does."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jinja2
import msgspec

from enginehouse.optimize.sources.chat_template import bounded
from enginehouse.runtimes.tool_calls import parsers

Messages = list[dict[str, Any]]
CALLED = ("call", "tool")  # roles to try: an assistant's message that calls, and what the tool gave


class Taken(msgspec.Struct, frozen=True):
    """By a template, as they stand."""

    head: bool  # a system message that comes first
    systems: bool  # in the middle
    users: bool  # in a row
    after_results: bool = True  # the user's, right behind what a tool gave


@functools.lru_cache(maxsize=8)
def taken_by(source: str, template: jinja2.Template) -> Taken:
    """`source`: the template's text. One that does not even show a plain conversation is given all as it is."""
    if not shows(source, template, ("user", "assistant", "user")):
        return Taken(head=True, systems=True, users=True)
    head = shows(source, template, ("system", "user", "assistant", "user"))
    systems = head and shows(source, template, ("user", "system", "assistant", "system", "user", "system"))
    after_results = not shows(source, template, ("user", *CALLED)) or shows(source, template, ("user", *CALLED, "user"))
    return Taken(head, systems, shows(source, template, ("user", "user", "assistant", "user")), after_results)


def shows(source: str, template: jinja2.Template, roles: Sequence[str]) -> bool:
    """Whether it takes messages of these roles and writes all their texts, in their order."""
    texts = [f"text {index} of {role}" if role != "call" else "" for index, role in enumerate(roles)]
    messages = [message(role, text) for role, text in zip(roles, texts, strict=True)]
    try:
        with bounded():
            given = parsers.parser_of(source).prepare(messages, [], source)
            written = template.render(messages=given, bos_token="", eos_token="", add_generation_prompt=True)
    except Exception:  # a template is foreign code, and raises what it likes
        return False
    places = [written.find(text) for text in texts if text]
    return -1 not in places and places == sorted(places)


def message(role: str, text: str) -> dict[str, Any]:
    if role == "call":
        function = {"name": "f", "arguments": {}}
        calls = [{"id": "call00000", "type": "function", "function": function}]
        return {"role": "assistant", "content": text, "tool_calls": calls}
    if role == "tool":
        return {"role": role, "content": text, "tool_call_id": "call00000", "name": "f"}
    return {"role": role, "content": text}


def arranged(messages: Messages, taken: Taken) -> Messages:
    """System messages in the middle become the user's, and never part of the head: that would change with each of
    them, and what was read of the conversation be lost. Where the roles must alternate, neighbours are joined."""
    if not taken.systems:
        head = list(itertools.takewhile(lambda message: taken.head and message["role"] == "system", messages))
        later = messages[len(head) :]
        joined_head = [head[0] | {"content": joined(head)}] if head else []
        messages = joined_head + [m | {"role": "user"} if m["role"] == "system" else m for m in later]
    if not taken.after_results:
        messages = joined_to_results(messages)
    if taken.users:
        return messages
    out: Messages = []
    for role, run in itertools.groupby(messages, lambda message: message["role"]):
        said = list(run)
        out += [said[-1] | {"content": joined(said)}] if role == "user" else said
    return out


def joined_to_results(messages: Messages) -> Messages:
    out: Messages = []
    for one in messages:
        if one["role"] == "user" and out and out[-1]["role"] == "tool":
            out[-1] = out[-1] | {"content": joined([out[-1], one])}
        else:
            out.append(one)
    return out


def joined(messages: Messages) -> str:
    return "\n\n".join(message["content"] for message in messages)
