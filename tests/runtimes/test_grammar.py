"""Constraints are enforced, or refused before anything runs."""

import contextlib
import json
from typing import Any

import pytest

from enginehouse.runtimes.contract import JsonSchema, Structured
from enginehouse.runtimes.errors import NotEnforceable, Refused
from enginehouse.runtimes.grammar import ebnf, json_schema
from enginehouse.runtimes.grammar.matcher import GrammarCompiler
from enginehouse.runtimes.structure import JsonValue

END = 256


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    """Of a vocabulary of all bytes."""
    return GrammarCompiler([*(bytes([byte]) for byte in range(256)), b""], [END], [END], lambda text: [*text.encode()])


UNFOLLOWABLE: list[dict[str, Any]] = [
    {"$ref": "#"},
    {"type": "integer", "multipleOf": 999983, "minimum": 123456789, "maximum": 98765432109876},
]


@pytest.mark.parametrize("schema", UNFOLLOWABLE, ids=["reference-to-itself", "multiples"])
def test_what_cannot_be_followed_to_the_first_token_is_refused_in_one_line(
    compiler: GrammarCompiler, schema: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="cannot be enforced") as refused:
        compiler.matcher(JsonSchema(json.dumps(schema)))
    assert refused.value.code == "invalid_constraint"
    assert "\n" not in refused.value.message
    assert "{" not in refused.value.message


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def test_a_schema_too_deep_to_be_written_down_cannot_be_enforced() -> None:
    for levels in (100, 255):
        with contextlib.suppress(NotEnforceable):
            json_schema.grammar(deep(levels))
        assert ebnf.grammar(JsonValue(json.dumps(deep(levels)), must=False))


@pytest.mark.parametrize("schema", [deep(130), UNFOLLOWABLE[0]], ids=["deep", "reference-to-itself"])
def test_arguments_that_need_not_be_enforced_and_cannot_be_are_any_object(
    compiler: GrammarCompiler, schema: dict[str, Any]
) -> None:
    matcher = compiler.matcher(Structured(JsonValue(json.dumps(schema), must=False)))
    for token in b'{"any": 1}':
        matcher.accept(token)
    with pytest.raises(Refused, match="the constraint cannot be") as refused:
        compiler.matcher(Structured(JsonValue(json.dumps(schema), must=True)))
    assert "\n" not in refused.value.message


def test_what_every_value_consists_of_is_written_once() -> None:
    """xgrammar takes time and memory for every place in a grammar."""
    few, many = (
        json_schema.grammar({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(count)}})
        for count in (100, 200)
    )
    assert len(many) - len(few) < 100 * 200
