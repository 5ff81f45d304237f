"""What /schema/openapi.json says: handlers read their bodies themselves, so that refusals can name fields; what they
read and answer is described here, from the same structs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec
from litestar.openapi.spec import (
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIType

from enginehouse.server.errors import ErrorReply
from enginehouse.server.urgency import NUMBER, PRIORITIES, PRIORITY, TIMEOUT

JSON, EVENTS = "application/json", "text/event-stream"
PLACES = "#/components/schemas/{name}"
FAILURES = {
    400: "the request cannot be served as it stands; 'param' names the field",
    401: "no valid API key",
    403: "not one of the operators' keys",
    404: "no model of that name",
    409: "it is in use",
    413: "the body is larger than is read here",
    415: "the body is not sent as application/json",
    429: "too many requests wait for this model; Retry-After says when to come again",
    500: "an engine broke, or the server met what it did not expect",
    502: "an upstream answered what is no answer",
    503: "the model cannot be served now",
    504: "the answer was not finished in time",
}
USUAL = [code for code in FAILURES if code != 409]
NOT_OF_GET = (400, 403, 413, 415, 429, 502, 504)
URGENCY = {
    PRIORITY: Schema(type=OpenAPIType.STRING, enum=list(PRIORITIES)),
    TIMEOUT: Schema(type=OpenAPIType.STRING, pattern=rf"^{NUMBER.pattern}$"),
}
NULL = {"type": "null"}
PLACED = ("runtime", "precision", "device", "reason")


class Body(msgspec.Struct, frozen=True):
    """A request's struct and what is taken beside its fields."""

    struct: type[msgspec.Struct]
    ignored: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] = {}
    media_type: str = JSON


@dataclass
class Described(Operation):
    """Litestar makes one for each route and calls it with what it found out by itself."""

    body: ClassVar[Body | None]
    answers: ClassVar[tuple[type[msgspec.Struct], ...]]

    @property
    def _exclude_fields(self) -> set[str]:
        return {"body", "answers"}


def described(
    answer: type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] | str,
    body: Body | None = None,
    streams: bool | str = False,
    failures: Sequence[int] = (),
    assigned: bool = False,
    own_failures: bool = False,
) -> type[Operation]:
    """Of a handler that reads `body` and answers with a struct (or one of several) as JSON or, by its media type, with
    text or any object. `streams` may be a media type too; `own_failures`: not in OpenAI's shape."""
    given_answers = () if isinstance(answer, str) else answer if isinstance(answer, tuple) else (answer,)
    given_body, codes = body, list(failures) or [code for code in USUAL if body or code not in NOT_OF_GET]

    @dataclass
    class Given(Described):
        body = given_body
        answers = given_answers

        def __post_init__(self) -> None:
            if given_body:
                self.request_body = RequestBody({given_body.media_type: media(given_body.struct)}, required=True)
                self.parameters = [
                    *(self.parameters or ()),
                    *(Parameter(name, "header", schema) for name, schema in URGENCY.items()),
                ]
            content = {JSON: media(*given_answers)} if not isinstance(answer, str) else {answer: any_of(answer)}
            if streams:
                content[EVENTS if streams is True else streams] = OpenAPIMediaType(
                    Schema()
                )  # a stream is no value; its events are the dialect's
            headers: dict[str, Any] = {
                f"x-enginehouse-{name}": OpenAPIHeader(
                    Schema(type=OpenAPIType.STRING), description=f"{name} of the answer"
                )
                for name in PLACED
            }
            good = OpenAPIResponse("as asked for", headers=headers if assigned else None, content=content)
            self.responses = {"200": good}
            failed = any_of(JSON) if own_failures else media(ErrorReply)
            for code in codes:
                self.responses[str(code)] = OpenAPIResponse(FAILURES[code], content={JSON: failed})

    return Given


def media(*structs: type[msgspec.Struct]) -> OpenAPIMediaType:
    references = [Reference(PLACES.format(name=struct.__name__)) for struct in structs]
    return OpenAPIMediaType(references[0] if len(references) == 1 else Schema(any_of=references))


def any_of(media_type: str) -> OpenAPIMediaType:
    return OpenAPIMediaType(Schema(type=OpenAPIType.OBJECT)) if media_type == JSON else text()


def text() -> OpenAPIMediaType:
    return OpenAPIMediaType(Schema(type=OpenAPIType.STRING))


def components(operations: Sequence[type[Operation]]) -> dict[str, Any]:
    """Every struct that these read or answer with, as JSON schemas by name."""
    ours = [operation for operation in operations if issubclass(operation, Described)]
    bodies = [operation.body for operation in ours if operation.body]
    structs = [*(body.struct for body in bodies), *(one for operation in ours for one in operation.answers), ErrorReply]
    _, schemas = msgspec.json.schema_components(dict.fromkeys(structs), ref_template=PLACES)
    for body in bodies:
        schemas[body.struct.__name__] = as_read(schemas[body.struct.__name__], body)
    return schemas


def as_read(schema: dict[str, Any], body: Body) -> dict[str, Any]:
    """With what is taken beside the struct's fields; and null is as good as not there."""
    required = schema.get("required", [])
    fields = {
        name: field if name in required or NULL in field.get("anyOf", ()) else {"anyOf": [field, NULL]}
        for name, field in schema["properties"].items()
    }
    fields |= {name: {"description": "without effect"} for name in sorted(body.ignored)}
    fields |= {
        name: {"enum": [*values, None], "description": "nothing else is supported"}
        for name, values in body.neutral.items()
    }
    return schema | {"properties": fields}
