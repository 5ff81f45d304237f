"""What a request may hold at most: OpenAI's limits or larger ones. More is a 400 that names the field and its limit.
And what a connection may, before there is a request."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.runtimes.errors import Refused

MESSAGES = 20_000  # and items of an input, and parts of a message
TOOLS = 1024  # OpenAI: 128; a client with many MCP servers has more
ANSWERS = 128
STOPS, STOP_LETTERS = 16, 256  # OpenAI: 4
LOGIT_BIASES = 1024
STOP_TOKENS = 1024
CHOICES = 1024
GRAMMAR_LETTERS = 32 * 1024  # more takes its converter seconds
TEXTS = 2048
ITEMS_ADDED = 20  # to a conversation at a time, as at OpenAI
CONVERSATIONS, CONVERSATIONS_BYTES = 10_000, 1 << 30  # of a key
CONVERSATION_ITEMS, CONVERSATION_BYTES = MESSAGES, 32 << 20  # of one of them
BACKGROUND, BACKGROUND_OF_A_KEY = 64, 16  # responses under way that no client waits for
BACKGROUND_BYTES = 64 << 20  # of their events, all together
SCHEMA_BYTES, SCHEMA_DEPTH = 512 * 1024, 512
TOOLS_BYTES = 2 * 1024 * 1024
# Fields that hold JSON of any form: their size as sent is looked at before any of it is read.
FREE_FORM = (
    "chat_template_kwargs",
    "response_format",
    "text",
    "output_config",
    "format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "grammar",
    "json_schema",
)
FREE_FORM_BYTES = 2 * SCHEMA_BYTES
LISTS = ("messages", "input")
LIST_OF_OBJECTS = re.compile(rb"\s*\[\s*\{")
SENT_BYTES = {"tools": TOOLS_BYTES, "functions": TOOLS_BYTES} | dict.fromkeys(FREE_FORM, FREE_FORM_BYTES)

LARGEST_BODY_BYTES = 10 << 20  # and message of a WebSocket, and all that wait there for their turn
HEAD_BYTES, HEADERS, PIPELINED = 64 * 1024, 256, 32
HEAD_SECONDS, BODY_PAUSE_SECONDS, BODY_SECONDS, IDLE_SECONDS = 30, 60, 600, 75
SOCKET_SECONDS, SOCKET_WAITING = 3600, 16
OPEN_FILES = 8192  # of which all but a few are connections


class Limit(msgspec.Struct, frozen=True):
    fields: tuple[str, ...]
    most: int
    unit: str


TABLE = (
    Limit(("messages", "input", "content"), MESSAGES, "messages, items or parts"),
    Limit(("items",), ITEMS_ADDED, "items added to a conversation at a time"),
    Limit(("conversation",), CONVERSATION_ITEMS, "items in it"),
    Limit(("conversation",), CONVERSATION_BYTES, "bytes of items in it"),
    Limit(("tools", "functions", "tool_calls", "tool_choice.allowed_tools"), TOOLS, "tools or calls"),
    Limit(("tools", "functions"), TOOLS_BYTES, "bytes of JSON as sent, all together"),
    Limit(FREE_FORM, FREE_FORM_BYTES, "bytes of JSON as sent"),
    Limit(("n", "prompt"), ANSWERS, "answers to one request"),
    Limit(("stop", "stop_sequences"), STOPS, "texts"),
    Limit(("stop", "stop_sequences"), STOP_LETTERS, "characters each"),
    Limit(("logit_bias",), LOGIT_BIASES, "tokens"),
    Limit(("stop_token_ids",), STOP_TOKENS, "tokens"),
    Limit(("structured_outputs.grammar", "guided_grammar", "grammar"), GRAMMAR_LETTERS, "characters"),
    Limit(("structured_outputs.choice", "guided_choice"), CHOICES, "texts"),
    Limit(("input", "documents", "text_2"), TEXTS, "texts to embed, those they are compared with among them"),
    Limit(("parameters", "schema", "format", "chat_template_kwargs"), SCHEMA_BYTES, "bytes of JSON"),
    Limit(("parameters", "schema", "format", "chat_template_kwargs"), SCHEMA_DEPTH, "levels of brackets"),
)

# What of a connection, how much at most, and what is answered to more.
CONNECTION_TABLE = (
    ("URL", f"{HEAD_BYTES:,} bytes", "414"),
    ("headers", f"{HEAD_BYTES:,} bytes", "431"),
    ("headers", f"{HEADERS}", "431"),
    ("requests sent before their turn", f"{PIPELINED}", "closed"),
    ("until all headers have come", f"{HEAD_SECONDS} s", "closed"),
    ("between two pieces of a body", f"{BODY_PAUSE_SECONDS} s", "408"),
    ("until a body has come", f"{BODY_SECONDS} s", "408"),
    ("idle between two requests", f"{IDLE_SECONDS} s", "closed"),
    ("a WebSocket", f"{SOCKET_SECONDS} s", "closed"),
    ("a message of a WebSocket, and all that wait for their turn", f"{LARGEST_BODY_BYTES:,} bytes", "closed"),
    ("messages that wait for their turn", f"{SOCKET_WAITING}", "closed"),
    ("an answer of which the client takes nothing", "`server.send_timeout`", "closed"),
)


def check_sizes(fields: Mapping[str, bytes]) -> None:
    """Of a request's fields as sent."""
    for key in fields.keys() & SENT_BYTES.keys():
        if (size := len(fields[key])) > (most := SENT_BYTES[key]):
            raise Refused(f"'{key}' has {size} bytes; it takes {most} at most", key, "invalid_value")
    for key in fields.keys() & LISTS:
        check_count(fields[key], key)


def check_count(sent: bytes, where: str) -> None:
    """Of a list of objects, and of the lists in them: counted before anything is made of what they hold."""
    if len(sent) <= 2 * MESSAGES or not LIST_OF_OBJECTS.match(sent):
        return
    items = msgspec.json.decode(sent, type=list[msgspec.Raw])
    if len(items) > MESSAGES:
        raise Refused(f"'{where}' has {len(items)} members; it takes {MESSAGES} at most", where, "invalid_value")
    for index, item in enumerate(map(bytes, items)):
        if len(item) > 2 * MESSAGES and item.startswith(b"{"):
            parts = msgspec.json.decode(item, type=dict[str, msgspec.Raw])
            check_count(bytes(parts.get("content", b"")), f"{where}[{index}].content")


def check_json(value: dict[str, Any], where: str) -> None:
    """Of an object that is free in its form: raises Refused where it is larger or deeper than is taken."""
    size = len(msgspec.json.encode(value))
    if size > SCHEMA_BYTES:
        raise Refused(f"'{where}' has {size} bytes; it takes {SCHEMA_BYTES} at most", where, "invalid_value")
    level: list[Any] = [value]
    for _ in range(SCHEMA_DEPTH + 1):
        if not level:
            return
        level = [inner for outer in level for inner in inside(outer) if isinstance(inner, dict | list)]
    raise Refused(f"'{where}' is nested deeper than {SCHEMA_DEPTH} levels", where, "invalid_value")


def inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
