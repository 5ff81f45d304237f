"""A JSON schema as a grammar in xgrammar's EBNF: strict, with short blanks. What it cannot enforce it refuses by name.

xgrammar reads schemas itself, but lets a model write blanks for ever and ignores what it does not know.
"""

import json
import re
import re._constants as kind
import re._parser as regex
from collections.abc import Iterator, Sequence
from typing import Any

from enginehouse.runtimes.errors import NotEnforceable

Schema = Any  # a JSON value: an object, true or false

BLANKS, INTEGER, NUMBER, STRING = "blanks", "integer", "number", "string"  # rules of PRIMITIVES
HEX = "[0-9a-fA-F]"
# Not [^"\\]: xgrammar lets that match bytes beyond Unicode's last character.
CHARACTER = (
    r'([ !#-\[\]-\U0000d7ff\U0000e000-\U0010ffff] | "\\" ["\\/bfnrt] | "\\u" '
    f"([0-9a-cefA-CEF] {HEX} {HEX} {HEX} | [dD] [0-7] {HEX} {HEX}))"  # no half of a surrogate pair
)
# xgrammar works out the tokens of every place in a grammar: these once, and not wherever they are used, costs a
# hundredth of the time and the memory.
PRIMITIVES = rf"""
{BLANKS} ::= (" " | "\n" [ \t]{{0,24}})?
{INTEGER} ::= "-"? ("0" | [1-9] [0-9]{{0,15}})
{NUMBER} ::= {INTEGER} ("." [0-9]{{1,15}})? ([eE] [+-]? [0-9] [0-9]?)?
{STRING} ::= "\"" {CHARACTER}* "\""
"""
ANNOTATIONS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$comment",
    "$defs", "definitions", "discriminator",
}  # fmt: skip
DAY = r"((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
DATE, TIME = (
    rf"[1-9][0-9]{{3}}-{DAY}",
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
)
BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
FORMATS = {
    "date": DATE,
    "time": TIME,
    "date-time": f"{DATE}T{TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
    "ipv4": rf"{BYTE}(\.{BYTE}){{3}}",
    "email": r"[A-Za-z0-9_+-]{1,32}(\.[A-Za-z0-9_+-]{1,32}){0,3}@([A-Za-z0-9-]{1,32}\.){1,3}[A-Za-z]{2,12}",
}
RULES = {  # the keywords for values of each type
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
    "boolean": set[str](),
    "null": set[str](),
}


def grammar(schema: Schema) -> str:
    """Raises NotEnforceable."""
    return SchemaWriter(schema).text() + PRIMITIVES


class SchemaWriter:
    """Collects the rules of one schema, which use PRIMITIVES."""

    def __init__(self, schema: Schema, prefix: str = "r") -> None:
        self._schema, self._prefix = schema, prefix
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}  # "#/$defs/x" -> its rule
        self._alike = {name: name for name in (INTEGER, NUMBER, STRING)}  # what many values are, and its rule
        self._any = ""

    def text(self, root: str = "root") -> str:
        """`root`: the name of the rule for the whole value."""
        try:
            whole = self._reference("#")
        except RecursionError as error:
            raise NotEnforceable("a schema that is nested so deeply") from error
        lines = [f"{root} ::= {whole}", *(f"{name} ::= {body}" for name, body in self._rules.items())]
        return "\n".join(lines)

    def _rule(self, body: str) -> str:
        name = f"{self._prefix}{len(self._rules)}"
        self._rules[name] = body
        return name

    def _shared(self, body: str) -> str:
        if body not in self._alike:
            self._alike[body] = self._rule(body)
        return self._alike[body]

    def _reference(self, pointer: str) -> str:
        if pointer not in self._references:
            name = self._references[pointer] = self._rule("")  # its name is known before its body: it may be recursive
            self._rules[name] = self._value(self._find(pointer))
        return self._references[pointer]

    def _find(self, pointer: str) -> Schema:
        found = self._schema
        for step in pointer.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not pointer.startswith("#") or not isinstance(found, dict) or step not in found:
                raise NotEnforceable(f"'$ref' to '{pointer}', which is not in the schema")
            found = found[step]
        return found

    def _value(self, schema: Schema) -> str:
        if schema is True or schema == {}:
            return self._anything()
        if not isinstance(schema, dict):
            raise NotEnforceable(f"{json.dumps(schema)} where a schema is expected")
        keywords = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if not keywords:
            return self._anything()
        for key, write in (
            ("$ref", self._reference),
            ("anyOf", self._either),
            ("oneOf", self._one),
            ("allOf", self._all),
        ):
            if key in keywords:
                refuse_beside(key, keywords)
                return write(keywords[key])
        if "enum" in keywords or "const" in keywords:
            return self._listed(keywords)
        return self._typed(keywords)

    def _either(self, schemas: Sequence[Schema]) -> str:
        return alternatives(self._value(schema) for schema in schemas)

    def _one(self, schemas: Sequence[Schema]) -> str:
        """Branches that no value can meet two of; of others it could not be told."""
        resolved = [self._find(s["$ref"]) if isinstance(s, dict) and "$ref" in s else s for s in schemas]
        if not (distinct_types(resolved) or distinct_marks(resolved)):
            raise NotEnforceable("'oneOf' of schemas that one value could meet two of; 'anyOf' can be enforced")
        return self._either(schemas)

    def _all(self, schemas: Sequence[Schema]) -> str:
        if len(schemas) != 1:
            raise NotEnforceable("'allOf' of several schemas")
        return self._value(schemas[0])

    def _listed(self, keywords: dict[str, Any]) -> str:
        refuse_beside("enum", keywords, {"enum", "const", "type"})
        values = keywords["enum"] if "enum" in keywords else [keywords["const"]]
        values = [value for value in values if "const" not in keywords or value == keywords["const"]]
        types = keywords.get("type", list(RULES))
        admitted = [value for value in values if is_of(value, [types] if isinstance(types, str) else types)]
        if not admitted:
            raise NotEnforceable("an 'enum' that no value meets")
        return alternatives(literal(json.dumps(value, ensure_ascii=False)) for value in admitted)

    def _typed(self, keywords: dict[str, Any]) -> str:
        types = keywords.get("type") or [
            name for name, rules in RULES.items() if rules & keywords.keys() and name != "integer"
        ]
        types = [types] if isinstance(types, str) else types
        unknown = keywords.keys() - {"type"} - set().union(*(RULES.get(name, set()) for name in types))
        if unknown or not types:
            raise NotEnforceable(f"'{min(unknown, default='type')}'")
        return alternatives(self._of_type(name, keywords) for name in types)

    def _of_type(self, name: str, keywords: dict[str, Any]) -> str:
        match name:
            case "string":
                return self._shared(string(keywords))
            case "integer":
                return self._shared(integer(*bounds(keywords)))
            case "number":
                return self._shared(number(*bounds(keywords)))
            case "boolean":
                return '("true" | "false")'
            case "null":
                return '"null"'
            case "array":
                return self._array(keywords)
            case "object":
                return self._object(keywords)
        raise NotEnforceable(f"'type' '{name}'")

    def _array(self, keywords: dict[str, Any]) -> str:
        first, items = keywords.get("prefixItems", []), keywords.get("items", True)
        least, most = keywords.get("minItems", 0), keywords.get("maxItems")
        if items is False:
            most = len(first) if most is None else min(most, len(first))
        if most is not None and least > most:
            raise NotEnforceable(f"'minItems' {least} where there can be {most} at most")
        fixed = [self._value(schema) for schema in first[:most]]
        more = "" if items is False else self._rule(self._value(items))
        comma = f'{BLANKS} "," {BLANKS}'
        # From the last place backward: what may follow once `count` items are there.
        after = ""
        if more and (most is None or most > len(fixed)):
            low, high = max(least - len(fixed), 0), "" if most is None else most - len(fixed)
            if fixed:
                after = f"({comma} {more}){{{low},{high}}}"
            else:
                rest = "" if most is None else most - 1
                after = f"{more} ({comma} {more}){{{max(low - 1, 0)},{rest}}}"
                after = after if low else f"({after})?"
        for index in reversed(range(len(fixed))):
            after = f"{comma if index else ''} {fixed[index]} {after}"
            after = after if index < least else f"({after})?"
        return self._rule(f'"[" {BLANKS} {after} {BLANKS} "]"')

    def _object(self, keywords: dict[str, Any]) -> str:
        properties, required = keywords.get("properties", {}), set(keywords.get("required", []))
        more = keywords.get("additionalProperties", not properties)
        if missing := required - properties.keys():
            raise NotEnforceable(f"'required' '{min(missing)}', which 'properties' does not describe")
        if properties and more not in (True, False):
            raise NotEnforceable("'additionalProperties' of a schema beside 'properties'")
        comma = f'{BLANKS} "," {BLANKS}'
        if not properties:
            if more is False:
                return f'"{{" {BLANKS} "}}"'
            member = self._rule(f'{STRING} {BLANKS} ":" {BLANKS} {self._value(more)}')
            return self._rule(f'"{{" {BLANKS} ({member} ({comma} {member})*)? {BLANKS} "}}"')
        # Two rules for each place: with members before it, and with none.
        later = first = '""'
        for name, schema in reversed(properties.items()):
            key = literal(json.dumps(name, ensure_ascii=False))
            member = self._rule(f'{key} {BLANKS} ":" {BLANKS} {self._value(schema)}')
            with_it, begins = f"{comma} {member} {later}", f"{member} {later}"
            later = self._rule(with_it if name in required else f"{with_it} | {later}")
            first = self._rule(begins if name in required else f"{begins} | {first}")
        return self._rule(f'"{{" {BLANKS} {first} {BLANKS} "}}"')

    def _anything(self) -> str:
        if not self._any:
            self._any = self._rule("")
            item, member = self._any, f'{STRING} {BLANKS} ":" {BLANKS} {self._any}'
            comma = f'{BLANKS} "," {BLANKS}'
            self._rules[self._any] = (
                f'{STRING} | {NUMBER} | "true" | "false" | "null" '
                f'| "[" {BLANKS} ({item} ({comma} {item})*)? {BLANKS} "]" '
                f'| "{{" {BLANKS} ({member} ({comma} {member})*)? {BLANKS} "}}"'
            )
        return self._any


def refuse_beside(key: str, keywords: dict[str, Any], allowed: set[str] | None = None) -> None:
    others = keywords.keys() - (allowed or {key})
    if key in ("anyOf", "oneOf") and others == {"type"}:  # what the branches say again
        return
    if others:
        raise NotEnforceable(f"'{min(others)}' beside '{key}'")


def distinct_types(schemas: Sequence[Schema]) -> bool:
    types = [s.get("type") if isinstance(s, dict) else None for s in schemas]
    return None not in types and all(isinstance(t, str) for t in types) and len(set(types)) == len(types)


def distinct_marks(schemas: Sequence[Schema]) -> bool:
    """Whether all are objects with one required property whose value tells them apart."""

    def marks(schema: Schema) -> dict[str, str]:
        properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
        marked = {}
        for name in set(properties) & set(schema.get("required", [])):
            keywords = properties[name] if isinstance(properties[name], dict) else {}
            values = [keywords["const"]] if "const" in keywords else keywords.get("enum", [])
            if len(values) == 1:
                marked[name] = json.dumps(values[0])
        return marked

    marks_of_all = [marks(schema) for schema in schemas]
    shared = set(marks_of_all[0]).intersection(*marks_of_all) if marks_of_all else set()
    return any(len({each[name] for each in marks_of_all}) == len(marks_of_all) for name in shared)


def is_of(value: Any, types: Sequence[str]) -> bool:
    named = {str: "string", bool: "boolean", type(None): "null", list: "array", dict: "object"}.get(
        type(value), "number"
    )
    return named in types or (named == "number" and "integer" in types and value == int(value))


# --- strings ---


def string(keywords: dict[str, Any]) -> str:
    least, most = keywords.get("minLength", 0), keywords.get("maxLength")
    pattern, form = keywords.get("pattern"), keywords.get("format")
    if form is not None and form not in FORMATS:
        raise NotEnforceable(f"'format' '{form}'; have: {', '.join(FORMATS)}")
    if pattern is None and form is None:
        if most is not None and least > most:
            raise NotEnforceable(f"'minLength' {least} where 'maxLength' is {most}")
        if not least and most is None:
            return STRING
        count = f"{{{least},{'' if most is None else most}}}"
        return f'("\\"" {CHARACTER}{count} "\\"")'
    if (pattern and form) or least or most is not None:
        raise NotEnforceable("'pattern' or 'format' beside another rule for the same string")
    body = anchored(pattern) if pattern is not None else expression(regex.parse(FORMATS[str(form)]))
    return f'("\\"" {body} "\\"")'


def anchored(pattern: str) -> str:
    try:
        parsed = list(regex.parse(pattern))
    except re.error as error:
        raise NotEnforceable(f"'pattern' '{pattern}', which is no regular expression: {error}") from error
    begins = parsed[:1] == [(kind.AT, kind.AT_BEGINNING)]
    ends = parsed[-1:] == [(kind.AT, kind.AT_END)]
    inner = parsed[begins : len(parsed) - ends]
    before, after = ("" if begins else f"{CHARACTER}*"), ("" if ends else f"{CHARACTER}*")
    return f"{before} {expression(inner)} {after}"


def expression(parsed: Any) -> str:
    """Of Python's own parse of a regular expression; each character as JSON writes it."""
    return " ".join(map(part, parsed)) or '""'


def part(node: Any) -> str:
    what, value = node
    if what is kind.LITERAL:
        return literal(json.dumps(chr(value), ensure_ascii=False)[1:-1])
    if what is kind.IN:
        return characters(value)
    if what is kind.ANY:
        return CHARACTER
    if what is kind.NOT_LITERAL:
        return characters([(kind.NEGATE, None), (kind.LITERAL, value)])
    if what is kind.SUBPATTERN and not value[1] and not value[2]:
        return f"({expression(value[3])})"
    if what is kind.BRANCH:
        return alternatives(expression(branch) for branch in value[1])
    if what in (kind.MAX_REPEAT, kind.MIN_REPEAT):
        low, high, repeated = value
        return f"({expression(repeated)}){{{low},{'' if high is kind.MAXREPEAT else high}}}"
    raise NotEnforceable("'pattern' with anchors inside, lookaround, flags or references")


CATEGORIES = {
    kind.CATEGORY_DIGIT: [(48, 57)],
    kind.CATEGORY_WORD: [(48, 57), (65, 90), (95, 95), (97, 122)],
    kind.CATEGORY_SPACE: [(9, 13), (32, 32)],
}
TEXT = [(0, 0xD7FF), (0xE000, 0x10FFFF)]  # no surrogates


def characters(members: Any) -> str:
    negated = members[0][0] is kind.NEGATE
    ranges: list[tuple[int, int]] = []
    for what, value in members[negated:]:
        if what is kind.CATEGORY and value in CATEGORIES:
            ranges += CATEGORIES[value]
        elif what in (kind.RANGE, kind.LITERAL):
            ranges.append(value if what is kind.RANGE else (value, value))
        else:
            raise NotEnforceable("'pattern' with a class of characters that is not understood")
    ranges = without(TEXT, ranges) if negated else without(TEXT, without(TEXT, ranges))
    plain = without(ranges, [(0, 31), *((ord(c), ord(c)) for c in ESCAPED)])
    escaped = [c for c in ESCAPED if any(low <= ord(c) <= high for low, high in ranges)]
    options = [f"[{''.join(map(in_class, plain))}]"] if plain else []
    options += [literal(json.dumps(character)[1:-1]) for character in escaped]
    if not options:
        raise NotEnforceable("'pattern' with a class that no character is in")
    return alternatives(options)


ESCAPED = '"\\\t\n\r'  # what stands in JSON as an escape; other control characters a class leaves out


def without(ranges: Sequence[tuple[int, int]], removed: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    remaining = list(ranges)
    for low, high in removed:
        parts = ((at, to) for a, b in remaining for at, to in ((a, min(b, low - 1)), (max(a, high + 1), b)))
        remaining = sorted({(at, to) for at, to in parts if at <= to})
    return remaining


def in_class(span: tuple[int, int]) -> str:
    return "-".join(f"\\U{code:08x}" for code in span)


# --- numbers ---


def bounds(keywords: dict[str, Any]) -> tuple[float | None, bool, float | None, bool]:
    """Lower bound and whether it is excluded, upper bound and whether it is."""
    low, high = keywords.get("minimum"), keywords.get("maximum")
    above, below = keywords.get("exclusiveMinimum"), keywords.get("exclusiveMaximum")
    if isinstance(above, bool) or isinstance(below, bool):
        raise NotEnforceable("'exclusiveMinimum' and 'exclusiveMaximum' that are no numbers")
    if above is not None and (low is None or above >= low):
        low = above
    if below is not None and (high is None or below <= high):
        high = below
    return low, low is not None and low == above, high, high is not None and high == below


def integer(low: float | None, above: bool, high: float | None, below: bool) -> str:
    if low is None and high is None:
        return INTEGER
    least = None if low is None else -int(-low // 1) + (above and low == int(low))
    most = None if high is None else int(high // 1) - (below and high == int(high))
    return alternatives(whole_numbers(least, most))


LARGEST = 10**15 - 1


def whole_numbers(least: int | None, most: int | None) -> list[str]:
    least, most = -LARGEST if least is None else least, LARGEST if most is None else most
    if least > most:
        raise NotEnforceable(f"a number of at least {least} and at most {most}")
    out = [f'"-" ({" | ".join(spans(max(-most, 1), -least))})'] if least < 0 else []
    if most >= 0:
        out.append(" | ".join(spans(max(least, 0), most)))
    return [f"({option})" for option in out]


def spans(low: int, high: int) -> Iterator[str]:
    """Numbers of equally many digits at a time, split where digits can no longer vary freely."""
    while low <= high:
        size = len(str(low))
        top = min(high, 10**size - 1)
        # the largest power of ten that fits between low and top
        power = 0
        while low % 10 ** (power + 1) == 0 and low + 10 ** (power + 1) - 1 <= top and power + 1 < size:
            power += 1
        step = 10**power
        digit = low // step % 10
        last = digit
        while last < 9 and low + (last - digit + 2) * step - 1 <= top:
            last += 1
        head = str(low // (step * 10)) if low // (step * 10) else ""
        free = f" [0-9]{{{power}}}" if power else ""
        yield f"{literal(head) + ' ' if head else ''}[{digit}-{last}]{free}"
        low += (last - digit + 1) * step


def number(low: float | None, above: bool, high: float | None, below: bool) -> str:
    """Between whole bounds: every whole number, and a fraction after each that stays within."""
    if low is None and high is None:
        return NUMBER
    if any(bound is not None and bound != int(bound) for bound in (low, high)):
        raise NotEnforceable("a 'number' with a bound that is not whole")
    least, most = (None if bound is None else int(bound) for bound in (low, high))
    options = []
    whole_low, whole_high = (least + above if least is not None else None), (most - below if most is not None else None)
    if whole_low is None or whole_high is None or whole_low <= whole_high:
        options += whole_numbers(whole_low, whole_high)
    digits = '"." [0-9]{0,14} [1-9]'  # ends in no zero: never a bound that is excluded
    floor, ceiling = (-LARGEST if least is None else least), (LARGEST if most is None else most)
    if ceiling > 0 and ceiling > floor:
        options.append(f"({' | '.join(spans(max(floor, 0), ceiling - 1))}) {digits}")
    if floor < 0 and ceiling > floor:
        options.append(f'"-" ({" | ".join(spans(max(-ceiling, 0), -floor - 1))}) {digits}')
    return alternatives(options)


def alternatives(options: Any) -> str:
    return f"({' | '.join(options)})"


def literal(text: str) -> str:
    plain = {character for character in map(chr, range(32, 127)) if character not in '"\\'}
    return '"' + "".join(c if c in plain else f"\\U{ord(c):08x}" for c in text) + '"'
