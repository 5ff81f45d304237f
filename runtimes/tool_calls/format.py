"""What a model's form of tool calls is: how it is told by the template, read from text, and enforced."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.structure import (
    NOTHING,
    AnyText,
    ConstString,
    JsonValue,
    Repeat,
    Structure,
    Until,
    concat,
    one_of,
)
from enginehouse.runtimes.tool_calls.scanner import Brackets, Incoming, Reading, text, thought

Messages = list[dict[str, Any]]
THINK = ("<think>", "</think>")


class Tool(msgspec.Struct, frozen=True):
    name: str
    arguments: JsonValue


class Setting(msgspec.Struct, frozen=True):
    """What a request and its prompt make of a form."""

    tools: tuple[Tool, ...] = ()
    required: bool = False  # at least one call
    parallel: bool = True  # several, if the form has them
    reasoning: bool = False  # the template knows thoughts
    thinking: bool = False  # the prompt ends inside one
    content: JsonValue | None = None  # what an answer without calls must be


class Format(msgspec.Struct, frozen=True):
    """One form."""

    name: str
    recognizes: Callable[[str], bool]  # by the text of the chat template
    read: Callable[[Incoming, Setting], Reading[None]]
    structure: Callable[[Setting], Structure]  # of an answer
    marks: tuple[str, ...] = ()  # tokens that must show their text, though a tokenizer may call them special
    thought: tuple[str, str] = THINK
    knows_tools: bool = True  # the template writes the tools into the prompt
    prepare: Callable[[Messages, Sequence[dict[str, Any]], str], Messages] = lambda messages, tools, template: messages


def tagged(
    name: str,
    recognizes: Callable[[str], bool],
    triggers: tuple[str, ...],
    read_calls: Callable[[Incoming, Setting, str], Reading[None]],
    after: Callable[[Setting], Structure],
    repeats: bool,
    **more: Any,
) -> Format:
    """A form whose calls follow a trigger anywhere in the text. `after`: what follows the first of the triggers, which
    `repeats` for each call or holds them all; `read_calls` reads on after any of them."""
    marks: tuple[str, str] = more.get("thought", THINK)

    def read(incoming: Incoming, setting: Setting) -> Reading[None]:
        yield from read_thought(incoming, setting, marks)
        while trigger := (yield from incoming.until(triggers if setting.tools else (), text)):
            yield from read_calls(incoming, setting, trigger)

    def structure(setting: Setting) -> Structure:
        if not setting.tools:
            return answer_structure(setting, marks)
        once = not (repeats and setting.parallel)
        one = concat(ConstString(triggers[0], spaced=True), after(setting))
        calls = one if once else Repeat(one)
        if setting.required:
            return concat(thought_structure(setting, marks), calls)
        if setting.content:
            return concat(thought_structure(setting, marks), one_of([calls, content_structure(setting.content)]))
        free = AnyText(((triggers[0], after(setting)),), once, unlike=(marks[0],) if setting.reasoning else ())
        return concat(thought_structure(setting, marks), free)

    return Format(name, recognizes, read, structure, **more)


def beginning(
    name: str,
    recognizes: Callable[[str], bool],
    triggers: Callable[[Setting], tuple[str, ...]],
    read_calls: Callable[[Incoming, Setting, str], Reading[None]],
    calls: Callable[[Setting], Structure],
    **more: Any,
) -> Format:
    """A form whose answers are either calls from one of the triggers on, or text."""
    marks: tuple[str, str] = more.get("thought", THINK)

    def read(incoming: Incoming, setting: Setting) -> Reading[None]:
        yield from read_thought(incoming, setting, marks)
        if setting.tools and (trigger := (yield from incoming.starts(triggers(setting)))):
            yield from read_calls(incoming, setting, trigger)
        yield from incoming.until((), text)

    def structure(setting: Setting) -> Structure:
        if not setting.tools:
            return answer_structure(setting, marks)
        if setting.required:
            return concat(thought_structure(setting, marks), calls(setting))
        if setting.content:
            raise Refused(
                "'response_format' cannot be combined with this model's form of tool calls", "response_format"
            )
        unlike = (*triggers(setting), *([marks[0]] if setting.reasoning else []))
        return concat(thought_structure(setting, marks), one_of([calls(setting), AnyText(unlike=unlike)]))

    return Format(name, recognizes, read, structure, **more)


# --- thoughts and content ---


def read_thought(incoming: Incoming, setting: Setting, marks: tuple[str, str]) -> Reading[None]:
    opened = setting.thinking
    incoming.trims = opened
    if setting.reasoning and not opened:
        opened = bool((yield from incoming.starts(marks[:1])))
    if opened:
        yield from incoming.until(marks[1:], thought, reasoning=True)


def thought_structure(setting: Setting, marks: tuple[str, str]) -> Structure:
    if setting.thinking:
        return Until(marks[1])
    if setting.reasoning:
        return one_of([concat(ConstString(marks[0], spaced=True), Until(marks[1])), NOTHING])
    return NOTHING


def answer_structure(setting: Setting, marks: tuple[str, str]) -> Structure:
    """Of an answer that can call nothing."""
    return concat(
        thought_structure(setting, marks), content_structure(setting.content) if setting.content else AnyText()
    )


def content_structure(content: JsonValue) -> Structure:
    return concat(one_of([ConstString("\n\n"), ConstString("\n"), NOTHING]), content)


# --- calls as JSON ---

HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


def read_object(incoming: Incoming, before: str = "") -> Reading[bool]:
    """A call that is an object with its name and arguments, the arguments as they come; in any other order or dress
    once it is complete. What is no call is text, with what led to it."""
    brackets, seen = Brackets(), 0
    while True:
        if head := HEAD.match(incoming.held):
            incoming.skip(head.end())
            first, arguments = incoming.call(head[1])
            yield first
            if (yield from incoming.value(arguments)):
                yield from incoming.value(lambda rest: None, depth=1)
            return True
        begun = incoming.held.lstrip()
        if incoming.ended or (begun and begun[0] != "{"):
            yield incoming.back(before)
            return False
        end = brackets.close(incoming.held[seen:])
        if end >= 0:
            written = incoming.held[: seen + end]
            incoming.skip(len(written))
            if call := whole_call(written):
                first, arguments = incoming.call(call[0])
                yield first
                yield arguments(call[1])
                return True
            yield incoming.back(before + written)
            return False
        seen = len(incoming.held)
        yield None


def whole_call(written: str) -> tuple[str, str] | None:
    """Name and arguments of an object that is complete."""
    try:
        call = json.loads(written)
        call = call.get("function", call) if isinstance(call.get("function"), dict) else call
        arguments = call.get("arguments", call.get("parameters")) or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        name = call["name"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not isinstance(arguments, dict) or not isinstance(name, str) or not name:
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def read_list(incoming: Incoming, before: str, end: str = "") -> Reading[None]:
    """Calls in a list, of which the bracket is the next to come, and then `end`."""
    if not (yield from incoming.starts(("[",))):
        if not (yield from read_object(incoming, before)):
            return
    else:
        before += "["
        while (yield from read_object(incoming, before)):
            if not (before := (yield from incoming.starts((",",)))):
                break
        else:
            return
        yield from incoming.starts(("]",))
    if end:
        yield from incoming.starts((end,))


def object_structure(setting: Setting, key: str = "arguments", spaced: bool = False) -> Structure:
    heads = [ConstString(f'{{"name": {json.dumps(tool.name)}, "{key}": ', spaced) for tool in setting.tools]
    return one_of([concat(head, tool.arguments, "}") for head, tool in zip(heads, setting.tools, strict=True)])


def list_structure(setting: Setting, end: str = "") -> Structure:
    one = object_structure(setting)
    return concat("[", Repeat(one, ", ") if setting.parallel else one, f"]{end}")


def optional(structure: Structure) -> Structure:
    return one_of([structure, NOTHING])


# --- arguments that are not written as one JSON object ---

TOLD = {"type", "properties", "required", "additionalProperties", "title", "description", "$defs", "definitions"}


class Word(msgspec.Struct, frozen=True):
    """One argument."""

    name: str
    schema: dict[str, Any]
    required: bool


def words(tool: Tool) -> list[Word]:
    """Raises Refused where the arguments cannot be told one by one and must be enforced."""
    schema = json.loads(tool.arguments.schema)
    if tool.arguments.must and (others := schema.keys() - TOLD):
        raise Refused(f"'{min(others)}' cannot be enforced for the arguments of '{tool.name}' on this model", "tools")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return [
        Word(name, (said if isinstance(said, dict) else {}) | shared, name in schema.get("required", []))
        for name, said in schema.get("properties", {}).items()
    ]


def words_structure(structures: Sequence[tuple[Word, Structure]], between: str) -> Structure:
    """What is required, then of the others any."""
    fixed = [structure for word, structure in structures if word.required]
    free = [structure for word, structure in structures if not word.required]
    if fixed:
        later = [concat(between, structure) for structure in fixed[1:]] + [
            optional(concat(between, structure)) for structure in free
        ]
        return concat(fixed[0], *later)
    options = [
        concat(structure, *(optional(concat(between, other)) for other in free[at + 1 :]))
        for at, structure in enumerate(free)
    ]
    return one_of([*options, NOTHING])
