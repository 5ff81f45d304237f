"""Bodies nobody would send: valid ones of every route, and what Hypothesis makes of them at any depth."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

from tests.schemas import SCHEMAS

USER = {"role": "user", "content": "one two three"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 0}},
    "required": ["city"],
}
FUNCTION = {"name": "get_weather", "description": "Tells.", "parameters": PARAMETERS, "strict": False}
TOOLS = [{"type": "function", "function": FUNCTION}, {"type": "function", "function": {"name": "f"}}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
SAMPLING: dict[str, Any] = {
    "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 1, "frequency_penalty": 0.1,
    "presence_penalty": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": False, "logit_bias": {"1": 1},
    "stop": ["x", "y"], "stop_token_ids": [5], "stream": True, "stream_options": {"include_usage": True}, "n": 2,
    "max_tokens": 5,
}  # fmt: skip
HELD: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS, "strict": True}}
RESPONSE: dict[str, Any] = {
    "instructions": "Be kind.", "store": True, "stream": True, "include": ["message.output_text.logprobs"],
    "max_output_tokens": 16, "temperature": 0.5, "top_p": 0.9, "top_logprobs": 2, "metadata": {"a": "b"},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": PARAMETERS}, "verbosity": "medium"},
    "reasoning": {"effort": "low", "summary": "auto"}, "parallel_tool_calls": False, "tool_choice": "auto",
    "tools": [{"type": "function", **FUNCTION}], "truncation": "disabled", "user": "me",
}  # fmt: skip
ITEMS = [
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"role": "user", "content": "one two three", "id": "msg_1"},
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]},
    {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{}", "id": "fc_1"},
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
]
REFERENCE = {"type": "item_reference", "id": "msg_1"}  # of what the fuzzer stores first
BLOCKS = [
    {"role": "user", "content": [{"type": "text", "text": "one two", "cache_control": {"type": "ephemeral"}}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "so", "signature": "x"},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}},
        ],
    },
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"}]},
]
USED = [{"name": "get_weather", "description": "Tells.", "input_schema": PARAMETERS, "strict": False}]
MESSAGE: dict[str, Any] = {
    "system": [{"type": "text", "text": "Be kind."}], "max_tokens": 16, "stream": True, "stop_sequences": ["x"],
    "temperature": 0.5, "top_p": 0.9, "top_k": 40, "tools": USED, "metadata": {"user_id": "me"},
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "low"},
}  # fmt: skip
COUNTED = {key: MESSAGE[key] for key in ("system", "tools", "tool_choice", "thinking", "output_config")}
# By route: the fields without which there is no answer, and all others; a body has some of these.
SEEDS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "/v1/chat/completions": [
        ({"messages": [{"role": "system", "content": "a"}, USER]}, SAMPLING | {"logprobs": True, "top_logprobs": 2}),
        ({"messages": [{**USER, "content": [{"type": "text", "text": "a"}]}], "response_format": HELD}, SAMPLING),
        (
            {"messages": [USER, {"role": "assistant", "content": "a"}], "reasoning_effort": "low"},
            {"chat_template_kwargs": {"enable_thinking": True}, "response_format": {"type": "json_object"}},
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
                ],
                "tools": TOOLS,
            },
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False} | SAMPLING,
        ),
    ],
    "/v1/completions": [
        ({"prompt": ["one two", [65, 66]]}, SAMPLING | {"echo": True, "logprobs": 2}),
        ({"prompt": "one two three"}, SAMPLING | {"echo": True}),
        ({"prompt": [65, 66, 67]}, SAMPLING | {"echo": True, "max_tokens": 0}),
    ],
    "/v1/embeddings": [
        ({"input": ["one two", "three"]}, {"encoding_format": "base64", "dimensions": 8, "pooling": "last"}),
        ({"input": [[65, 66], [67]]}, {"user": "me"}),
    ],
    "/v1/rerank": [
        ({"query": "one", "documents": ["one two", {"text": "three"}]}, {"top_n": 1, "return_documents": True}),
    ],
    "/tokenize": [
        ({"prompt": "one two three"}, {"add_special_tokens": False}),
        ({"messages": [USER], "tools": TOOLS}, {"chat_template_kwargs": {"enable_thinking": True}}),
    ],
    "/detokenize": [({"tokens": [65, 66, 67]}, {})],
    "/v1/responses": [({"input": one}, RESPONSE) for one in ("one two three", ITEMS, [REFERENCE, USER])],
    "/v1/responses/input_tokens": [({"input": ITEMS}, {"instructions": "Be kind.", "tools": RESPONSE["tools"]})],
    "/v1/messages": [
        ({"messages": [USER], "max_tokens": 16}, MESSAGE),
        ({"messages": BLOCKS, "max_tokens": 16}, MESSAGE),
    ],
    "/v1/messages/count_tokens": [({"messages": BLOCKS}, COUNTED)],
}
NEEDED = {"stream_options": "stream", "top_logprobs": "logprobs"}  # the one is refused without the other
ODD_SCHEMAS: list[dict[str, Any]] = [
    {"$ref": "#"}, {"$ref": "#/$defs/x"}, {"enum": []}, {"anyOf": []}, {"not": {}}, {"allOf": [{"type": "string"}, {}]},
    {"type": []}, {"type": "array", "minItems": 10**9}, {"type": "string", "minLength": 9, "maxLength": 1},
    {"type": "integer", "multipleOf": 999983, "minimum": 123456789}, {"type": "string", "pattern": "^((a|b){1,99}c)+$"},
    {"type": "string", "pattern": "(?=a)(b)\\1"}, {"type": "string", "format": "x"}, {"const": {"a": [None, 1e400]}},
    {"patternProperties": {"(": {}}}, {"type": "object", "required": ["a"], "additionalProperties": False},
]  # fmt: skip
CHANGES = ["alter"] * 5 + ["replace", "remove", "add", "repeat", "move", "wrap", "nest", "rename"]
WORDS = st.sampled_from(
    ["system", "developer", "user", "assistant", "tool", "auto", "none", "required", "text", "json_object", "string",
     "integer", "number", "object", "array", "null", "high", "tool_use", "tool_result", "function_call", "any"]
)  # fmt: skip
MOST_ANSWERS = 8  # of one request, for each takes time
EDGES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 1e308, -0.0, 0.5, float("nan"), "", "a",
    "\ud800", "\x00", "<|im_end|>", "日本", "../../etc/passwd", "x" * 5000, [], {}, [[]], {"": None}, {"$ref": "#"},
    {"type": "object"},
]  # fmt: skip
values = st.sampled_from(EDGES).map(copy.deepcopy) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn, route: str, described: st.SearchStrategy[Any]) -> bytes:
    """A valid body with some of its route's fields, or one that its schema describes; then changed up to 3 times."""
    given = draw(described) if draw(one_in(4)) else None
    if isinstance(given, dict):
        body = copy.deepcopy(given)
    else:
        necessary, others = draw(st.sampled_from(SEEDS[route]))
        chosen = draw(st.lists(st.sampled_from(sorted(others)), unique=True)) if others else []
        body = copy.deepcopy(necessary | {key: others[key] for key in chosen})
        for key, needed in NEEDED.items():
            if key in body and needed in others:
                body[needed] = others[needed]
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        change(draw, body)
    if not draw(one_in(20)):
        body["model"] = draw(st.sampled_from(["echo", "pocket", "pocket", "pocket"]))
    count = body.get("n")
    if isinstance(count, int) and MOST_ANSWERS < count <= 128:
        body["n"] = MOST_ANSWERS
    data = json.dumps(body).encode()
    return data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=3)) if draw(one_in(40)) else data


def one_in(number: int) -> st.SearchStrategy[bool]:
    """Hypothesis likes the ends of a range, so not those."""
    return st.integers(1, number).map(lambda drawn: drawn == number // 2 + 1)


def change(draw: st.DrawFn, body: dict[str, Any]) -> None:
    """Replaces, removes, adds, repeats, moves or wraps one value somewhere in it."""
    places = list(within(body))
    if not places:
        body[draw(st.text(max_size=8))] = draw(values)
        return
    container, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(CHANGES)):
        case "alter":
            container[key] = copy.deepcopy(draw(alike(container[key])))  # else a later change changes the strategy
        case "replace":
            container[key] = draw(values)
        case "remove":
            del container[key]
        case "add" if isinstance(container, list):
            container.append(draw(values))
        case "add":
            container[draw(st.text(max_size=8))] = draw(values)
        case "repeat" if isinstance(container[key], list | str):
            container[key] *= draw(st.sampled_from([0, 2, 130, 2100]))
        case "move":
            other, place = draw(st.sampled_from(places))
            container[key] = copy.deepcopy(other[place])
        case "wrap":
            container[key] = draw(st.sampled_from([[container[key]], {"type": container[key]}]))
        case "nest":
            for _ in range(draw(st.sampled_from([20, 200]))):
                container[key] = {"items": container[key]}
        case "rename" if isinstance(container, dict):
            container[draw(st.sampled_from([key.upper(), key + "s", key[:-1]]))] = container.pop(key)


def alike(value: Any) -> st.SearchStrategy[Any]:
    """What else a field of this kind may hold."""
    match value:
        case bool():
            return st.booleans()
        case int():
            return st.integers(-2, 40) | st.integers(0, 10**5) | st.integers()
        case float():
            return st.floats(-3, 3) | st.floats()
        case str():
            return st.text() | st.sampled_from([value + "\n", value * 9, "<think>", "<tool_call>", "</s>"]) | WORDS
        case list():
            return st.permutations(value) | st.lists(st.sampled_from(value or [""]), max_size=6)
        case _:
            return st.sampled_from([*SCHEMAS.values(), *ODD_SCHEMAS]) | values


def within(value: Any) -> Any:
    """Every place in it at every depth: what holds it, and its key there."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from within(value[key])


def smaller(value: Any) -> Any:
    """The same with one piece less, largest pieces first."""
    if isinstance(value, dict):
        for key in value:
            yield {other: value[other] for other in value if other != key}
        for key in value:
            for less in smaller(value[key]):
                yield value | {key: less}
    elif isinstance(value, list):
        for at in (len(value) // 2, *range(len(value))) if len(value) > 1 else (0,) * len(value):
            yield value[:at] if len(value) > 3 and at == len(value) // 2 else value[:at] + value[at + 1 :]
        for at, one in enumerate(value):
            for less in smaller(one):
                yield [*value[:at], less, *value[at + 1 :]]
    elif isinstance(value, str) and len(value) > 1:
        yield value[: len(value) // 2]
