"""How a batch ends: what is written of it is completed, and handed out as files."""

import logging
import secrets
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

import msgspec

from enginehouse.optimize import shortage
from enginehouse.server.api.batches.batch_store import BatchStore
from enginehouse.server.api.batches.file_store import FileStore, StorageFull
from enginehouse.server.api.batches.input_lines import Line, TooLongLine
from enginehouse.server.api.batches.results import Results
from enginehouse.server.api.batches.types import Problem, Problems, Status, StoredBatch, changed

log = logging.getLogger("enginehouse.batches")
EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
FAILURES = (OSError, sqlite3.Error, StorageFull, TooLongLine, msgspec.DecodeError)  # that end a batch


def end(
    batches: BatchStore,
    files: FileStore,
    results: Results,
    unanswered: Iterable[Line],
    id: str,
    status: Status,
    problem: Problem | None,
) -> StoredBatch:
    """In steps of which each can be done again: first it is settled how it ends, then its files are completed, then
    they are handed out. It blocks."""

    def settle(stored: StoredBatch) -> StoredBatch | None:
        if stored.ends_as:
            return None
        cancelled = stored.batch.status == "cancelling" and status == "completed"
        if status == "completed" and not cancelled:
            stored = changed(stored, status="finalizing", finalizing_at=int(time.time()))
        return msgspec.structs.replace(stored, ends_as="cancelled" if cancelled else status, problem=problem)

    settled = batches.change(id, settle)
    if settled.batch.in_progress_at:
        results.open(settled.batch.request_counts.total)
        if settled.ends_as == "expired":
            note_expired(results, unanswered, id)
    results.close()
    sizes = {file: files.size(file) for file in (settled.output, settled.errors)}

    def hand_out(stored: StoredBatch) -> StoredBatch:
        fields: dict[str, Any] = {"status": stored.ends_as, f"{stored.ends_as}_at": int(time.time())}
        if stored.batch.in_progress_at:
            fields["request_counts"] = results.counts
        if stored.problem:
            fields["errors"] = Problems([stored.problem])
        fields["output_file_id"] = stored.output if sizes[stored.output] else None
        fields["error_file_id"] = stored.errors if sizes[stored.errors] else None
        return changed(stored, **fields)

    def publish(db: sqlite3.Connection) -> None:
        for file, size in sizes.items():
            (files.publish_in if size else files.drop_in)(db, file)

    ended = batches.change(id, hand_out, publish)
    for file in [file for file, size in sizes.items() if not size]:
        files.path(file).unlink(missing_ok=True)
    return ended


def note_expired(results: Results, unanswered: Iterable[Line], id: str) -> None:
    try:
        for line in unanswered:
            fields = {"custom_id": line.custom_id, "response": None, "error": EXPIRED}
            results.add("errors", {"id": request_id()} | fields)
    except FAILURES as error:
        log.warning("batch '%s': not all of its lines are among its errors: %s", id, error)


def request_id() -> str:
    return f"batch_req_{secrets.token_hex(16)}"


def problem_of(error: Exception) -> Problem:
    match error:
        case StorageFull():
            return Problem("storage_full", str(error))
        case OSError():
            remedy = "free some of it, then make a batch of what is missing"
            return Problem("disk_failed", f"answers cannot be written: {shortage.describe(error, remedy)}")
        case sqlite3.Error():
            return Problem("disk_failed", f"answers cannot be kept: {error}")
        case _:
            return Problem("input_changed", "the input file is not what was checked")
