"""A request's body: read, refused by the name of the field at fault, and the kinds of fields that every API has."""

import asyncio
import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request
from litestar.datastructures import State
from litestar.exceptions import HTTPException

from enginehouse.runtimes.errors import Refused, TooLong
from enginehouse.server.limits import check_sizes
from enginehouse.server.rate_limits import check_model

T = TypeVar("T")
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
LARGEST = 2**31 - 1  # what engines count with
Count = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
IN_A_THREAD_BYTES = 256 * 1024  # a body from here on is read apart from the event loop
Metadata = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
    msgspec.Meta(max_length=16),
]
Ignored = Any  # of a field that is accepted and has no effect
Texts = str | list[str | int | list[int]]  # a text, texts, token ids, or lists of them

PLACE = re.compile(r"^(.*?)(?: - at (?:`key` in )?`\$\.?(.*)`)?$", re.DOTALL)
UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`", re.DOTALL)


async def read(request: Request[Any, Any, State], any_kind: bool = False) -> bytes:
    """`any_kind`: whatever it is called, but for a page in a browser, which must ask first to send JSON elsewhere."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (any_kind and "origin" not in request.headers):
        raise HTTPException(detail=f"content-type '{kind}' is not read here; send application/json", status_code=415)
    return await request.body()


async def read_as(request: Request[Any, Any, State], reader: Callable[[bytes], T], any_kind: bool = False) -> T:
    """The body through `reader`, which raises Refused; Forbidden where the key may not use the model it names."""
    body = await read(request, any_kind)
    asked = reader(body) if len(body) < IN_A_THREAD_BYTES else await asyncio.to_thread(reader, body)
    if model := getattr(asked, "model", "") or getattr(asked, "name", ""):
        check_model(request, model)
    return asked


def parse(
    body: bytes,
    to: type[T],
    ignored: Collection[str] = (),
    neutral: Mapping[str, tuple[Any, ...]] | None = None,
    check_kinds: Callable[[dict[str, Any]], None] | None = None,
) -> T:
    """A request, or Refused with the field's name. Nothing of it becomes Python's but what its struct holds."""
    try:
        fields = accepted(json_object(body), ignored, neutral or {})
        check_sizes(fields)
        return msgspec.json.decode(joined(fields), type=to)
    except msgspec.ValidationError as error:
        if check_kinds and " of length " not in str(error):
            check_kinds(msgspec.json.decode(joined(fields)))
        raise refusal(str(error)) from error
    except NOT_JSON as error:
        raise not_json(error) from error


def json_object(body: bytes) -> dict[str, bytes]:
    """Its fields, each as JSON. Raises Refused where it is none."""
    try:
        return {key: bytes(value) for key, value in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}
    except msgspec.ValidationError as error:
        raise Refused("the body must be a JSON object") from error
    except NOT_JSON as error:
        raise not_json(error) from error


def not_json(error: Exception) -> Refused:
    return Refused(f"the body is not JSON: {error}")


def joined(fields: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(msgspec.json.encode(key) + b":" + value for key, value in fields.items()) + b"}"


def accepted(
    raw: Mapping[str, bytes], ignored: Collection[str], neutral: Mapping[str, tuple[Any, ...]]
) -> dict[str, bytes]:
    """The fields that say something; null is as good as not there. Raises Refused for those that ask for what is not
    to be had here."""
    fields = {key: value for key, value in raw.items() if value != b"null" and key not in ignored}
    for key in fields.keys() & neutral.keys():
        value = msgspec.json.decode(fields.pop(key))
        if not any(value == allowed and type(value) is type(allowed) for allowed in neutral[key]):
            allowed = " or ".join(msgspec.json.encode(value).decode() for value in neutral[key])
            remedy = f"leave it out or send {allowed}" if allowed else "leave it out"
            raise Refused(f"'{key}' is not supported here with that value; {remedy}", key, "unsupported_parameter")
    return fields


def convert(fields: dict[str, Any], to: type[T], check_kinds: Callable[[dict[str, Any]], None] | None = None) -> T:
    """`check_kinds` raises Refused for parts and tools of a kind that is not taken: a better reason than a field of
    theirs that is not known."""
    try:
        return msgspec.convert(fields, to, str_keys=True)
    except msgspec.ValidationError as error:
        if check_kinds:
            check_kinds(fields)
        raise refusal(str(error)) from error


@contextlib.contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """What engines refuse is named as the request calls it."""
    try:
        yield
    except TooLong as error:
        param = names.get(error.param or "", error.param)
        raise TooLong(error.context, error.tokens, error.at_least, param) from error
    except Refused as error:
        raise Refused(error.message, names.get(error.param or "", error.param), error.code) from error


def members(value: Any, key: str) -> list[dict[str, Any]]:
    """The objects of the list under `key`, whatever was sent; what is none of them is as good as empty."""
    found = value.get(key) if isinstance(value, dict) else None
    return [one if isinstance(one, dict) else {} for one in found] if isinstance(found, list) else []


def check_text(parts: list[dict[str, Any]], where: str, kinds: Collection[str] = ("text",)) -> None:
    for index, part in enumerate(parts):
        kind = part.get("type")
        if isinstance(kind, str) and kind not in kinds:
            place = f"{where}[{index}]"
            raise Refused(
                f"'{place}': content of type '{kind}' is not supported here; only text", place, "unsupported_parameter"
            )


def refusal(message: str) -> Refused:
    match = PLACE.match(message)
    assert match
    what, place = match[1], match[2] or ""
    if unknown := UNKNOWN.match(what):
        name = f"{place}.{unknown[1]}" if place else unknown[1]
        return Refused(f"unknown field '{name}'", name, "unknown_parameter")
    if place == "tool_choice":
        forms = '"auto", "none", "required", {"type": "function", …} and {"type": "allowed_tools", …}'
        return Refused(f"'tool_choice' may be {forms}", place, "invalid_value")
    if missing := re.match(r"Object missing required field `(.+?)`", what):
        place = f"{place}.{missing[1]}" if place else missing[1]
    return Refused(f"'{place}': {what[0].lower()}{what[1:]}" if place else what, place or None, "invalid_value")


def texts_of(given: Texts, field: str) -> list[str | list[int]]:
    """OpenAI's four forms of a field as a list of texts or of token ids, none of them empty."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]  # type: ignore[list-item]
    try:
        texts = msgspec.convert(given, list[str | list[int]])
    except msgspec.ValidationError as error:
        raise Refused(f"'{field}' must be a text, texts, token ids or lists of them: {error}", field) from error
    if not texts or not all(texts):
        raise Refused(f"'{field}' holds nothing, or an empty text", field, "invalid_value")
    return texts
