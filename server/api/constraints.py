"""What an answer may look like, in the words of vLLM and llama.cpp: one constraint, whichever field asks for it."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from enginehouse.runtimes.contract import JSON_OBJECT, Constraint, Grammar, JsonSchema, Regex
from enginehouse.runtimes.errors import Refused
from enginehouse.server.limits import CHOICES, GRAMMAR_LETTERS, check_json

Schema = dict[str, Any] | str  # as JSON text
Choices = Annotated[list[Annotated[str, msgspec.Meta(min_length=1)]], msgspec.Meta(min_length=1, max_length=CHOICES)]
GrammarText = Annotated[str, msgspec.Meta(min_length=1, max_length=GRAMMAR_LETTERS)]
Pattern = Annotated[str, msgspec.Meta(min_length=1)]
SPECIAL = set(r"\.+*?()|[]{}^$/")  # in a regular expression


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    json: Schema | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: GrammarText | None = None
    json_object: bool = False


class ConstraintFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, frozen=True):
    structured_outputs: StructuredOutputs = StructuredOutputs()
    guided_json: Schema | None = None  # vLLM's older names
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None
    grammar: GrammarText | None = None  # llama.cpp's
    json_schema: dict[str, Any] | None = None  # the same


def constraint_of(request: ConstraintFields, *others: tuple[str, Constraint]) -> tuple[str, Constraint | None]:
    """The constraint and the field that asks for it, of these or of `others`."""
    found = [*others, *asked(request)]
    if len(found) > 1:
        (first, _), (second, _) = found[:2]
        raise Refused(f"'{second}' and '{first}' cannot both be kept to; send one of them", second, "invalid_value")
    return found[0] if found else ("response_format", None)


def asked(request: ConstraintFields) -> Iterator[tuple[str, Constraint]]:
    outputs, within = request.structured_outputs, "structured_outputs"
    for field, schema in (
        (f"{within}.json", outputs.json),
        ("guided_json", request.guided_json),
        ("json_schema", request.json_schema),
    ):
        if schema is not None:
            yield field, json_schema(schema, field)
    for field, pattern in ((f"{within}.regex", outputs.regex), ("guided_regex", request.guided_regex)):
        if pattern is not None:
            yield field, Regex(pattern)
    for field, choices in ((f"{within}.choice", outputs.choice), ("guided_choice", request.guided_choice)):
        if choices is not None:
            yield field, Regex("|".join(map(escaped, choices)))
    for field, grammar in (
        (f"{within}.grammar", outputs.grammar),
        ("guided_grammar", request.guided_grammar),
        ("grammar", request.grammar),
    ):
        if grammar is not None:
            yield field, Grammar(grammar)
    if outputs.json_object:
        yield f"{within}.json_object", JSON_OBJECT


def json_schema(schema: Schema, where: str) -> JsonSchema:
    """Raises Refused for one that is larger than is taken; `where`: the field it stands in."""
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise Refused(f"'{where}' is no JSON schema: {error}", where, "invalid_value") from error
    check_json(schema, where)
    return JsonSchema(msgspec.json.encode(schema).decode())


def escaped(text: str) -> str:
    """As a regular expression, in every engine's dialect."""
    return "".join(f"\\{letter}" if letter in SPECIAL else letter for letter in text)
