"""What an answer with tool calls may look like, as a small tree that every engine's constraint can be written from.

The names are those of xgrammar's structural tags, as far as it has them.
"""

from collections.abc import Sequence

import msgspec


class ConstString(msgspec.Struct, frozen=True, tag="const_string"):
    """This text; where `spaced`, after up to two line breaks: without a limit small models write them for ever."""

    text: str
    spaced: bool = False


class JsonValue(msgspec.Struct, frozen=True, tag="json_value"):
    """Validates against the schema."""

    schema: str  # as JSON text
    must: bool  # else, where the engine cannot enforce it, any object will do


class Until(msgspec.Struct, frozen=True, tag="until"):
    """Any text up to the first `end`, and that."""

    end: str


class AnyText(msgspec.Struct, frozen=True, tag="any_text"):
    """Any text to the end of the answer. Where one of these triggers comes up, what belongs to it follows."""

    after: "tuple[tuple[str, Structure], ...]" = ()
    once: bool = False  # nothing comes after the first of them
    unlike: tuple[str, ...] = ()  # what the text does not begin with


class Concat(msgspec.Struct, frozen=True, tag="concat"):
    """One after the other."""

    parts: "tuple[Structure, ...]"


class Or(msgspec.Struct, frozen=True, tag="or"):
    options: "tuple[Structure, ...]"


class Repeat(msgspec.Struct, frozen=True, tag="repeat"):
    """One or more."""

    part: "Structure"
    between: str = ""


Structure = ConstString | JsonValue | Until | AnyText | Concat | Or | Repeat
NOTHING = Concat(())


def concat(*parts: Structure | str) -> Structure:
    return Concat(tuple(ConstString(part) if isinstance(part, str) else part for part in parts))


def one_of(options: Sequence[Structure]) -> Structure:
    return options[0] if len(options) == 1 else Or(tuple(options))
