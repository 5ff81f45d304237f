"""The lines of a batch's input: read one at a time, and checked before any is answered."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from enginehouse.server.api.batches.types import Batch, Problem
from enginehouse.server.limits import BATCH_LINES, LINE_BYTES

MOST_PROBLEMS = 100  # that are told of one file
LONGEST_ID = 512


class Line(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class Asked(msgspec.Struct, frozen=True):
    """What all requests have in common."""

    model: str
    stream: bool | None = None
    background: bool | None = None


class TooLongLine(Exception):
    pass


def read(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each with its number, from 1; empty ones are none. Raises TooLongLine."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number += 1
            if len(line) > LINE_BYTES:
                raise TooLongLine(number)
            if line.strip():
                yield number, line


def parse(line: bytes) -> Line:
    return msgspec.json.decode(line, type=Line)


def digest(custom_id: str) -> bytes:
    """In the place of an id, which may be long."""
    return hashlib.blake2b(custom_id.encode(), digest_size=16).digest()


class Checked(msgspec.Struct, frozen=True):
    lines: int
    model: str | None  # as the first line names it
    problems: list[Problem]


def check(path: Path, batch: Batch, resolve: Callable[[str], str]) -> Checked:
    """Reads all of it. `resolve`: the model that is meant; raises LookupError with the reason."""
    seen, problems, lines, first = set[bytes](), list[Problem](), 0, None
    try:
        for number, raw in read(path):
            lines += 1
            if lines > BATCH_LINES:
                what = f"the file has more than {BATCH_LINES} lines; make several batches of it"
                problems.append(Problem("too_many_tasks", what, number))
                break
            if (found := problem_of(raw, batch, first, seen, resolve)) and isinstance(found, Problem):
                problems.append(msgspec.structs.replace(found, line=number))
            elif isinstance(found, str):
                first = first or found
            if len(problems) == MOST_PROBLEMS:
                break
    except TooLongLine as error:
        number = error.args[0]
        problems.append(Problem("line_too_long", f"a line takes {LINE_BYTES} bytes at most", number))
    if not lines and not problems:
        problems.append(Problem("empty_file", "the input file holds no line"))
    return Checked(lines, first, problems)


def problem_of(
    raw: bytes, batch: Batch, first: str | None, seen: set[bytes], resolve: Callable[[str], str]
) -> Problem | str:
    """What is wrong with a line, or else the model that it names. `first`: that of the first line."""
    try:
        line = parse(raw)
    except msgspec.ValidationError as error:
        return Problem("invalid_request", f"{error}; a line has custom_id, method, url and body")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Problem("invalid_json_line", f"this line is not JSON: {error}")
    if not 1 <= len(line.custom_id) <= LONGEST_ID:
        return Problem("invalid_custom_id", f"'custom_id' has 1 to {LONGEST_ID} characters", param="custom_id")
    if (key := digest(line.custom_id)) in seen:
        message = f"'custom_id' is '{line.custom_id}', as an earlier line's is"
        return Problem("duplicate_custom_id", message, param="custom_id")
    seen.add(key)
    if line.method != "POST":
        return Problem("invalid_method", f"'method' is POST, not '{line.method}'", param="method")
    if line.url != batch.endpoint:
        message = f"'url' is '{line.url}', and the batch's endpoint '{batch.endpoint}'"
        return Problem("invalid_url", message, param="url")
    try:
        asked = msgspec.json.decode(line.body, type=Asked)
    except msgspec.DecodeError as error:
        return Problem("invalid_request", f"'body': {error}", param="body")
    for field in ("stream", "background"):
        if getattr(asked, field):
            message = f"'{field}' is not for a batch; leave it out"
            return Problem("unsupported_parameter", message, param=f"body.{field}")
    try:
        model = resolve(asked.model)
    except LookupError as error:
        return Problem("model_not_found", str(error.args[0]), param="body.model")
    if first is not None and resolve(first) != model:
        message = f"'model' is '{asked.model}', and the first line's '{first}'; a batch is for one model"
        return Problem("mismatched_model", message, param="body.model")
    return asked.model
