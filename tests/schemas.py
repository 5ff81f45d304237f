"""Twenty JSON schemas as clients send them."""

from typing import Any

TREE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
    "additionalProperties": False,
}


def record(**properties: Any) -> dict[str, Any]:
    """An object of exactly these, as OpenAI's strict mode wants it."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "string": {"type": "string", "minLength": 3, "maxLength": 20},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    "date": {"type": "string", "format": "date"},
    "integer": {"type": "integer", "minimum": 3, "maximum": 12},
    "negative": {"type": "integer", "minimum": -20, "exclusiveMaximum": 0},
    "number": {"type": "number", "minimum": 0, "maximum": 1},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum": {"enum": ["red", "green", 7, None]},
    "const": {"const": {"a": [1, "two"]}},
    "array": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 4},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "string", "maxLength": 5}],
        "items": False,
        "minItems": 2,
    },
    "person": record(name={"type": "string", "maxLength": 12}, age={"type": "integer", "minimum": 0, "maximum": 120}),
    "nullable": record(city={"type": ["string", "null"], "maxLength": 12}),
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"type": "boolean"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "nested": record(
        who=record(name={"type": "string", "maxLength": 10}),
        tags={"type": "array", "items": {"enum": ["new", "old", "blue"]}, "minItems": 1, "maxItems": 3},
    ),
    "anyOf": {"anyOf": [record(kind={"const": "cat"}, lives={"enum": [7, 9]}), record(kind={"const": "dog"})]},
    "reference": {
        "$defs": {"point": record(x={"type": "integer"}, y={"type": "integer"})},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "recursive": TREE,
    "map": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}},
}
assert len(SCHEMAS) == 20
