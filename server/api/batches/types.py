"""OpenAI's files and batches as clients see them."""

from typing import Annotated, Any, Literal

import msgspec

from enginehouse.server.body import Metadata

Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
ENDED = ("failed", "completed", "expired", "cancelled")
LEAST_EXPIRY, MOST_EXPIRY = 3600, 30 * 24 * 3600  # seconds


class ExpiresAfter(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=LEAST_EXPIRY, le=MOST_EXPIRY)]


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    completion_window: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,6}[smhd]$")]  # OpenAI: 24h and nothing else
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class Upload(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A form's fields."""

    file: Annotated[str, msgspec.Meta(extra_json_schema={"format": "binary"})]
    purpose: Literal["batch"]
    expires_after: ExpiresAfter | None = None


class FileObject(msgspec.Struct, frozen=True):
    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, frozen=True):
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class DeletedFile(msgspec.Struct, frozen=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Problem(msgspec.Struct, frozen=True):
    code: str
    message: str
    line: int | None = None  # of the input file, from 1
    param: str | None = None


class Problems(msgspec.Struct, frozen=True):
    data: list[Problem]
    object: Literal["list"] = "list"


class Counts(msgspec.Struct, frozen=True):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, frozen=True):
    id: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    status: Status = "validating"
    model: str | None = None
    errors: Problems | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    object: Literal["batch"] = "batch"


class BatchList(msgspec.Struct, frozen=True):
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class StoredBatch(msgspec.Struct, frozen=True):
    """With what only the server knows of it."""

    batch: Batch
    owner: str
    output: str  # the ids that its files have, or will have
    errors: str
    ends_as: Status | None = None  # what is left to do is to hand out the files
    problem: Problem | None = None  # for which it ended


def changed(stored: StoredBatch, **fields: Any) -> StoredBatch:
    return msgspec.structs.replace(stored, batch=msgspec.structs.replace(stored.batch, **fields))
