"""A structure as a grammar in xgrammar's EBNF."""

import json
from collections.abc import Sequence

from enginehouse.runtimes.errors import NotEnforceable
from enginehouse.runtimes.grammar import json_schema
from enginehouse.runtimes.structure import AnyText, Concat, ConstString, JsonValue, Or, Repeat, Structure, Until

ANY = r"[\U00000000-\U0000d7ff\U0000e000-\U0010ffff]*"
OBJECT = {"type": "object"}


def grammar(structure: Structure) -> str:
    """Raises NotEnforceable."""
    writer = EbnfWriter()
    root = writer.write(structure)
    return "\n".join([f"root ::= {root}", *writer.lines]) + json_schema.PRIMITIVES


class EbnfWriter:
    """Collects the rules. Free text is xgrammar's TagDispatch, which must be the whole of a rule."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, structure: Structure) -> str:
        match structure:
            case ConstString(text, spaced):
                return rf"[\n]{{0,2}} {json_schema.literal(text)}" if spaced else json_schema.literal(text)
            case JsonValue():
                return self._value(structure)
            case Until(end):
                return self._rule(
                    f"TagDispatch(stop_eos=false,stop_str=({quoted(end)}),loop_after_dispatch=false,excludes=())"
                )
            case Concat(parts):
                return " ".join(map(self.write, parts)) or '""'
            case Or(options):
                return f"({' | '.join(map(self.write, options))})"
            case Repeat(part, between):
                repeated = self._rule(self.write(part))
                return f"({repeated} ({json_schema.literal(between)} {repeated})*)"
            case AnyText(after, once, unlike):
                return self._free(after, once) if after else self._other(unlike)

    def _free(self, after: Sequence[tuple[str, Structure]], once: bool) -> str:
        tags = "".join(f"({quoted(trigger)}, {self._rule(self.write(rest))})," for trigger, rest in after)
        loop = "false" if once else "true"
        return self._rule(f"TagDispatch({tags}stop_eos=true,stop_str=(),loop_after_dispatch={loop},excludes=())")

    def _other(self, unlike: Sequence[str]) -> str:
        """Text that begins with none of these, blanks aside: a tree of their letters."""
        if not unlike:
            return ANY
        if "" in unlike:
            return ""
        letters = sorted({text[0] for text in unlike})
        options = ['""', f"[^{''.join(map(in_class, letters))}] {ANY}"]
        for letter in letters:
            rest = self._other([text[1:] for text in unlike if text[0] == letter])
            if rest:
                options.append(f"{json_schema.literal(letter)} {rest}")
        return self._rule(" | ".join(options))

    def _value(self, value: JsonValue) -> str:
        name = f"v{len(self.lines)}"
        try:
            text = json_schema.SchemaWriter(json.loads(value.schema), f"{name}_").text(name)
        except NotEnforceable:
            if value.must:
                raise
            text = json_schema.SchemaWriter(OBJECT, f"{name}_").text(name)
        self.lines.append(text)
        return name

    def _rule(self, body: str) -> str:
        name = f"s{len(self.lines)}"
        self.lines.append(f"{name} ::= {body}")
        return name


def in_class(letter: str) -> str:
    return f"\\U{ord(letter):08x}"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
