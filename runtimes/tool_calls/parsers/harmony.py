"""gpt-oss: every part of an answer names its channel, and a call the function it goes to."""

import re

from enginehouse.runtimes.structure import AnyText, Structure, Until, concat, one_of
from enginehouse.runtimes.tool_calls.parser import ParseOptions, ToolParser, content_structure, optional
from enginehouse.runtimes.tool_calls.scanner import Reading, Scanner, text, thought

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
HEAD = re.compile(
    r"\s{0,8}(?:<\|start\|>assistant)?([^<]{0,96})<\|channel\|>(\w{1,16})([^<]{0,96})(?:<\|constrain\|>[^<]{0,16})?"
    r"<\|message\|>"
)
HEAD_LENGTH = 320
RECIPIENT = re.compile(r"to=(?:functions\.)?([\w.-]+)")


def recognizes(template: str) -> bool:
    return CHANNEL in template and MESSAGE in template


def read(scanner: Scanner, options: ParseOptions) -> Reading[None]:
    while head := (yield from scanner.match(HEAD, HEAD_LENGTH)):
        recipient = RECIPIENT.search(head[1] + head[3]) if options.tools else None
        if recipient:
            first, show = scanner.call(recipient[1])
            yield first
            if not (yield from scanner.starts(("{",))):
                yield show("{}")
            else:
                scanner.held, scanner.trims = "{" + scanner.held, False
                yield from scanner.value(show)
            yield from scanner.starts(ENDS)
        else:
            scanner.trims = True
            thinks = head[2] == "analysis"
            yield from scanner.until(ENDS, thought if thinks else text, reasoning=thinks)
    yield from scanner.until((), text)


def structure(options: ParseOptions) -> Structure:
    """One call at most: the model stops for its result."""
    heads = {tool: f"{CHANNEL}commentary to=functions.{tool.name} {CONSTRAIN}json{MESSAGE}" for tool in options.tools}
    next_part = f"{START}assistant"
    analysis = optional(concat(f"{CHANNEL}analysis{MESSAGE}", Until(END), next_part))
    preamble = optional(concat(f"{CHANNEL}commentary{MESSAGE}", Until(END), next_part))
    calls = [concat(head, tool.arguments) for tool, head in heads.items()]
    if options.required:
        return concat(analysis, preamble, one_of(calls))
    content = content_structure(options.content) if options.content else AnyText()
    return concat(analysis, preamble, one_of([*calls, concat(f"{CHANNEL}final{MESSAGE}", content)]))


PARSER = ToolParser(
    "harmony", recognizes, read, structure, marks=(START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS), thought=("", "")
)
