"""What an answer with tool calls may look like, as a small tree that every engine's constraint can be written from."""

from collections.abc import Sequence

import msgspec


class Literal(msgspec.Struct, frozen=True, tag="literal"):
    """This text; where `spaced`, after up to two line breaks: without a limit small models write them for ever."""

    text: str
    spaced: bool = False


class Json(msgspec.Struct, frozen=True, tag="json"):
    """A JSON value that validates against the schema."""

    schema: str  # as JSON text
    must: bool  # else, where the engine cannot enforce it, any object will do


class Until(msgspec.Struct, frozen=True, tag="until"):
    """Any text up to the first `end`, and that."""

    end: str


class Free(msgspec.Struct, frozen=True, tag="free"):
    """Any text to the end of the answer. Where one of these triggers comes up, what belongs to it follows."""

    after: "tuple[tuple[str, Shape], ...]" = ()
    once: bool = False  # nothing comes after the first of them
    unlike: tuple[str, ...] = ()  # what the text does not begin with


class Chain(msgspec.Struct, frozen=True, tag="chain"):
    """One after the other."""

    parts: "tuple[Shape, ...]"


class Either(msgspec.Struct, frozen=True, tag="either"):
    options: "tuple[Shape, ...]"


class Repeat(msgspec.Struct, frozen=True, tag="repeat"):
    """One or more."""

    part: "Shape"
    between: str = ""


Shape = Literal | Json | Until | Free | Chain | Either | Repeat
NOTHING = Chain(())


def chain(*parts: Shape | str) -> Shape:
    return Chain(tuple(Literal(part) if isinstance(part, str) else part for part in parts))


def either(options: Sequence[Shape]) -> Shape:
    return options[0] if len(options) == 1 else Either(tuple(options))
