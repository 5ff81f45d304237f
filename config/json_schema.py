"""The JSON Schema of a config file, for editors: the structs, described by the comments beside their fields."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from enginehouse.config import schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
CLASS = re.compile(r"class (\w+)\(")
FIELD = re.compile(r" {4}(\w+): [^#]*(?:  # (.*))?$")
COMMENT = re.compile(r" {4}# (.*)$")


def json_schema(options: Mapping[str, type[msgspec.Struct]]) -> dict[str, Any]:
    """`options`: by runtime, what a model's `options` may hold for it."""
    _, parts = msgspec.json.schema_components([schema.Config], ref_template="#/$defs/{name}")
    for (struct, field), text in comments().items():
        if struct in parts:
            properties = parts[struct]["properties"]
            properties[field] = {"description": text, **properties[field]}
    model = parts["Model"]["properties"]
    model["runtime"]["enum"] = ["auto", *sorted(options), "upstream"]
    by_runtime = {}
    for runtime, taken in options.items():
        (by_runtime[runtime],), further = msgspec.json.schema_components(
            [taken], ref_template=f"#/$defs/{runtime}.{{name}}"
        )
        parts |= {f"{runtime}.{name}": part for name, part in further.items()}
    model["options"] |= {"properties": by_runtime, "additionalProperties": False}
    whole = parts.pop("Config")
    whole["properties"]["models"] |= {"minProperties": 1}
    return {"$schema": DIALECT, **whole, "title": "enginehouse.yaml", "required": ["models"], "$defs": parts}


def comments() -> dict[tuple[str, str], str]:
    """By struct and field: what stands beside it, or above."""
    found, struct, above = dict[tuple[str, str], str](), "", list[str]()
    for line in inspect.getsource(schema).splitlines():
        if match := CLASS.match(line):
            struct = match[1]
        elif match := COMMENT.match(line):
            above.append(match[1])
            continue
        elif (match := FIELD.match(line)) and (text := " ".join([*above, *filter(None, [match[2]])])):
            found[struct, match[1]] = text
        above = []
    return found
