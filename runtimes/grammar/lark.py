"""A structure as a grammar in llguidance's dialect of Lark."""

import json
from collections.abc import Callable

from enginehouse.runtimes.structure import AnyText, Concat, ConstString, JsonValue, Or, Repeat, Structure, Until

ANY = r"/(.|\n)*/"


def grammar(structure: Structure, enforceable: Callable[[JsonValue], str]) -> str:
    """`enforceable` gives the schema to write for a value, as JSON text."""
    writer = LarkWriter(enforceable)
    return "\n".join([f"start: {writer.write(structure)}", *writer.lines])


class LarkWriter:
    """Collects the terminals. A terminal holds all that is to be told from free text: the lexer does not look back."""

    def __init__(self, enforceable: Callable[[JsonValue], str]) -> None:
        self.lines: list[str] = []
        self._enforceable = enforceable

    def write(self, structure: Structure) -> str:
        match structure:
            case ConstString(text, spaced):
                return self._terminal(rf"/\n{{0,2}}/ {quoted(text)}") if spaced else quoted(text)
            case JsonValue():
                return self._named(f"%json {self._enforceable(structure)}")
            case Until(end):
                return self._lazy(f"{ANY} {quoted(end)}")
            case Concat(parts):
                return " ".join(map(self.write, parts)) or '""'
            case Or(options):
                return f"({' | '.join(map(self.write, options))})"
            case Repeat(part, between):
                repeated = self._named(self.write(part))
                return f"({repeated} ({quoted(between)} {repeated})*)" if between else f"{repeated}+"
            case AnyText():
                return self._free(structure)

    def _free(self, free: AnyText) -> str:
        begins = " | ".join(map(quoted, free.unlike))
        unlike = rf" & ~(/\s*/ ({begins}) {ANY})" if begins else ""
        text = self._terminal(f"{ANY}{unlike}")
        calls = []
        for trigger, after in free.after:
            begin = self._lazy(f"({ANY} {quoted(trigger)}){unlike}")
            calls.append(f"{begin} {self.write(after)}")
        if not calls:
            return text
        return f"({text} | {' | '.join(calls)})" if free.once else f"({' | '.join(calls)})* {text}"

    def _terminal(self, body: str) -> str:
        self.lines.append(f"T{len(self.lines)}: {body}")
        return f"T{len(self.lines) - 1}"

    def _lazy(self, body: str) -> str:
        """Ends as soon as it can."""
        return self._named(self._terminal(body), "[lazy]")

    def _named(self, body: str, attributes: str = "") -> str:
        name = f"r{len(self.lines)}"
        self.lines.append(f"{name}{attributes}: {body}")
        return name


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
