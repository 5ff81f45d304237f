"""POST /v1/responses/compact: one item that stands for a conversation, a summary by the model itself."""

import secrets
import time
from typing import Annotated, Any

import msgspec

from enginehouse.runtimes.contract import Chat, Job
from enginehouse.runtimes.errors import Refused
from enginehouse.server.api.responses import protocol
from enginehouse.server.api.responses.render import Fields, usage_fields
from enginehouse.server.api.sealed import sealed
from enginehouse.server.body import Count
from enginehouse.server.exchange import Answer
from enginehouse.server.limits import MESSAGES

ASK = (
    "Summarize our conversation until now, so that you can go on from the summary alone: what I want, what was decided "
    "and done, what was found out, with names, paths and numbers, and what is left to do. Write the summary alone."
)


class CompactRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    input: str | Annotated[list[dict[str, Any]], msgspec.Meta(max_length=MESSAGES)] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    prompt_cache_key: str | None = None  # without effect
    max_output_tokens: Count | None = None


def to_job(asked: CompactRequest, history: list[Fields], given: list[Fields]) -> Job:
    if not history and not given:
        raise Refused("there is nothing to compact: send 'input' or 'previous_response_id'", "input", "invalid_value")
    request = protocol.ResponseRequest(
        asked.model, "", asked.instructions, temperature=0.0, max_output_tokens=asked.max_output_tokens
    )
    ask = protocol.items_of(ASK)
    return protocol.to_job(request, history, [*given, *ask], f"resp_{secrets.token_hex(16)}")


def has_turns(job: Job) -> bool:
    """Whether there is more to summarize than the request for it, when turns were left out."""
    assert isinstance(job.prompt, Chat)
    return [message["role"] for message in job.prompt.messages].count("user") > 1


def compacted(id: str, answer: Answer) -> Fields:
    assert answer.done
    summary = "".join(block.text for block in answer.content.blocks if block.kind == "text").strip()
    if not summary:
        raise Refused("the model has said nothing that could stand for the conversation", "model", "no_summary")
    item = {"id": f"cmp_{secrets.token_hex(12)}", "type": "compaction", "encrypted_content": sealed(summary)}
    return {
        "id": id,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [item],
        "usage": usage_fields(answer.done.usage),
    }
