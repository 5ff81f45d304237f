"""What a tool parser is: how a template shows that it is the right one, how calls are read from text and enforced."""

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
from enginehouse.runtimes.tool_calls.scanner import Brackets, Reading, Scanner, text, thought

Messages = list[dict[str, Any]]
THINK = ("<think>", "</think>")


class Tool(msgspec.Struct, frozen=True):
    name: str
    arguments: JsonValue


class ParseOptions(msgspec.Struct, frozen=True):
    """What a request and its prompt ask of a parser."""

    tools: tuple[Tool, ...] = ()
    required: bool = False  # at least one call
    parallel: bool = True  # several, if the model can
    reasoning: bool = False  # the template knows thoughts
    thinking: bool = False  # the prompt ends inside one
    content: JsonValue | None = None  # what an answer without calls must be


class ToolParser(msgspec.Struct, frozen=True):
    """For one way of writing calls."""

    name: str
    recognizes: Callable[[str], bool]  # by the text of the chat template
    read: Callable[[Scanner, ParseOptions], Reading[None]]
    structure: Callable[[ParseOptions], Structure]  # of an answer
    marks: tuple[str, ...] = ()  # tokens that must show their text, though a tokenizer may call them special
    thought: tuple[str, str] = THINK
    knows_tools: bool = True  # the template writes the tools into the prompt
    prepare: Callable[[Messages, Sequence[dict[str, Any]], str], Messages] = lambda messages, tools, template: messages


def tagged(
    name: str,
    recognizes: Callable[[str], bool],
    triggers: tuple[str, ...],
    read_calls: Callable[[Scanner, ParseOptions, str], Reading[None]],
    after: Callable[[ParseOptions], Structure],
    repeats: bool,
    **more: Any,
) -> ToolParser:
    """For calls that follow a trigger anywhere in the text. `after`: what follows the first of the triggers, which
    `repeats` for each call or holds them all; `read_calls` reads on after any of them."""
    thought_marks: tuple[str, str] = more.get("thought", THINK)

    def read(scanner: Scanner, options: ParseOptions) -> Reading[None]:
        yield from read_thought(scanner, options, thought_marks)
        while trigger := (yield from scanner.until(triggers if options.tools else (), text)):
            yield from read_calls(scanner, options, trigger)

    def structure(options: ParseOptions) -> Structure:
        if not options.tools:
            return answer_structure(options, thought_marks)
        once = not (repeats and options.parallel)
        call = concat(ConstString(triggers[0], spaced=True), after(options))
        calls = call if once else Repeat(call)
        if options.required:
            return concat(thought_structure(options, thought_marks), calls)
        if options.content:
            return concat(
                thought_structure(options, thought_marks), one_of([calls, content_structure(options.content)])
            )
        free = AnyText(((triggers[0], after(options)),), once, unlike=(thought_marks[0],) if options.reasoning else ())
        return concat(thought_structure(options, thought_marks), free)

    return ToolParser(name, recognizes, read, structure, **more)


def beginning(
    name: str,
    recognizes: Callable[[str], bool],
    triggers: Callable[[ParseOptions], tuple[str, ...]],
    read_calls: Callable[[Scanner, ParseOptions, str], Reading[None]],
    calls: Callable[[ParseOptions], Structure],
    **more: Any,
) -> ToolParser:
    """For answers that are either calls, from one of the triggers on, or text."""
    thought_marks: tuple[str, str] = more.get("thought", THINK)

    def read(scanner: Scanner, options: ParseOptions) -> Reading[None]:
        yield from read_thought(scanner, options, thought_marks)
        if options.tools and (trigger := (yield from scanner.starts(triggers(options)))):
            yield from read_calls(scanner, options, trigger)
        yield from scanner.until((), text)

    def structure(options: ParseOptions) -> Structure:
        if not options.tools:
            return answer_structure(options, thought_marks)
        if options.required:
            return concat(thought_structure(options, thought_marks), calls(options))
        if options.content:
            raise Refused(
                "'response_format' cannot be combined with this model's form of tool calls", "response_format"
            )
        unlike = (*triggers(options), *([thought_marks[0]] if options.reasoning else []))
        return concat(thought_structure(options, thought_marks), one_of([calls(options), AnyText(unlike=unlike)]))

    return ToolParser(name, recognizes, read, structure, **more)


# --- thoughts and content ---


def read_thought(scanner: Scanner, options: ParseOptions, thought_marks: tuple[str, str]) -> Reading[None]:
    opened = options.thinking
    scanner.trims = opened
    if options.reasoning and not opened:
        opened = bool((yield from scanner.starts(thought_marks[:1])))
    if opened:
        yield from scanner.until(thought_marks[1:], thought, reasoning=True)


def thought_structure(options: ParseOptions, thought_marks: tuple[str, str]) -> Structure:
    if options.thinking:
        return Until(thought_marks[1])
    if options.reasoning:
        return one_of([concat(ConstString(thought_marks[0], spaced=True), Until(thought_marks[1])), NOTHING])
    return NOTHING


def answer_structure(options: ParseOptions, thought_marks: tuple[str, str]) -> Structure:
    """Of an answer that can call nothing."""
    return concat(
        thought_structure(options, thought_marks), content_structure(options.content) if options.content else AnyText()
    )


def content_structure(content: JsonValue) -> Structure:
    return concat(one_of([ConstString("\n\n"), ConstString("\n"), NOTHING]), content)


# --- calls as JSON ---

HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


def read_object(scanner: Scanner, before: str = "") -> Reading[bool]:
    """A call that is an object with its name and arguments, the arguments as they come; in any other order or dress
    once it is complete. What is no call is text, with what led to it."""
    brackets, seen = Brackets(), 0
    while True:
        if head := HEAD.match(scanner.held):
            scanner.skip(head.end())
            first, arguments = scanner.call(head[1])
            yield first
            if (yield from scanner.value(arguments)):
                yield from scanner.value(lambda rest: None, depth=1)
            return True
        begun = scanner.held.lstrip()
        if scanner.ended or (begun and begun[0] != "{"):
            yield scanner.back(before)
            return False
        end = brackets.close(scanner.held[seen:])
        if end >= 0:
            written = scanner.held[: seen + end]
            scanner.skip(len(written))
            if call := whole_call(written):
                first, arguments = scanner.call(call[0])
                yield first
                yield arguments(call[1])
                return True
            yield scanner.back(before + written)
            return False
        seen = len(scanner.held)
        yield None


def whole_call(written: str) -> tuple[str, str] | None:
    """Name and arguments of an object that is complete."""
    try:
        call = json.loads(written)
        call = call.get("function", call) if isinstance(call.get("function"), dict) else call
        arguments = call.get("arguments", call.get("parameters")) or {}
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        name = call["name"]
        written_arguments = json.dumps(arguments, ensure_ascii=False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(arguments, dict) or not isinstance(name, str) or not name:
        return None
    return name, written_arguments


def read_list(scanner: Scanner, before: str, end: str = "") -> Reading[None]:
    """Calls in a list, of which the bracket is the next to come, and then `end`."""
    if not (yield from scanner.starts(("[",))):
        if not (yield from read_object(scanner, before)):
            return
    else:
        before += "["
        while (yield from read_object(scanner, before)):
            if not (before := (yield from scanner.starts((",",)))):
                break
        else:
            return
        yield from scanner.starts(("]",))
    if end:
        yield from scanner.starts((end,))


def object_structure(options: ParseOptions, key: str = "arguments", spaced: bool = False) -> Structure:
    heads = [ConstString(f'{{"name": {json.dumps(tool.name)}, "{key}": ', spaced) for tool in options.tools]
    return one_of([concat(head, tool.arguments, "}") for head, tool in zip(heads, options.tools, strict=True)])


def list_structure(options: ParseOptions, end: str = "") -> Structure:
    call = object_structure(options)
    return concat("[", Repeat(call, ", ") if options.parallel else call, f"]{end}")


def optional(structure: Structure) -> Structure:
    return one_of([structure, NOTHING])


# --- arguments that are not written as one JSON object ---

KEYWORDS = {"type", "properties", "required", "additionalProperties", "title", "description", "$defs", "definitions"}


class Parameter(msgspec.Struct, frozen=True):
    name: str
    schema: dict[str, Any]
    required: bool


def parameters(tool: Tool) -> list[Parameter]:
    """Raises Refused where the arguments cannot be told one by one and must be enforced."""
    schema = json.loads(tool.arguments.schema)
    if tool.arguments.must and (others := schema.keys() - KEYWORDS):
        raise Refused(f"'{min(others)}' cannot be enforced for the arguments of '{tool.name}' on this model", "tools")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return [
        Parameter(name, (keywords if isinstance(keywords, dict) else {}) | shared, name in schema.get("required", []))
        for name, keywords in schema.get("properties", {}).items()
    ]


def parameters_structure(structures: Sequence[tuple[Parameter, Structure]], between: str) -> Structure:
    """What is required, then of the others any."""
    fixed = [structure for parameter, structure in structures if parameter.required]
    free = [structure for parameter, structure in structures if not parameter.required]
    if fixed:
        later = [concat(between, structure) for structure in fixed[1:]] + [
            optional(concat(between, structure)) for structure in free
        ]
        return concat(fixed[0], *later)
    choices = [
        concat(structure, *(optional(concat(between, other)) for other in free[at + 1 :]))
        for at, structure in enumerate(free)
    ]
    return one_of([*choices, NOTHING])
