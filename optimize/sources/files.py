"""Reads the JSON files of a model's folder. Raises CannotBuild for what cannot be read, in a sentence that names it."""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from enginehouse.optimize.artifact import CannotBuild

T = TypeVar("T")


def read_json(file: Path) -> dict[str, Any]:
    """{} where there is no such file. Python's own reader: some configs hold an Infinity."""
    encoded = read_bytes(file)
    try:
        decoded = {} if encoded is None else json.loads(encoded)
    except ValueError as error:
        raise damaged(file, error) from error
    if not isinstance(decoded, dict):
        raise CannotBuild(f"'{file.name}' is not a JSON object")
    return decoded


def read(file: Path, kind: type[T]) -> T | None:
    """Decoded as `kind`, which is faster; None where there is no such file."""
    encoded = read_bytes(file)
    try:
        return None if encoded is None else msgspec.json.decode(encoded, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(file, error) from error


def read_bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes() if os.path.lexists(file) else None  # a link that leads nowhere is not nothing
    except OSError as error:
        raise CannotBuild(f"'{file.name}' cannot be read: {error.strerror}") from error


def damaged(file: Path, error: Exception) -> CannotBuild:
    return CannotBuild(f"'{file.name}' is damaged ({error}); download it again")
