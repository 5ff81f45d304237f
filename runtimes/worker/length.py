"""Whether a text can fit a context, told from its letters alone, in one pass."""

import functools
import os
import re
from collections.abc import Sequence
from itertools import islice

from enginehouse.runtimes.contract import Facts
from enginehouse.runtimes.errors import too_long


def check_text(text: str, facts: Facts) -> None:
    """Refuses what is more tokens than the context holds however it is tokenized."""
    context, least = facts.context_length, 0
    if facts.longest_token:
        least = -(-len(text.encode()) // facts.longest_token)
    if least <= context and facts.special_tokens:
        found = any_of(facts.special_tokens).finditer(text)
        least = sum(1 for _ in islice(found, context + 1))
    if least > context:
        raise too_long(context, f"at least {least}")


def check_messages(messages: Sequence[object], facts: Facts) -> None:
    """Refuses more messages than the context holds tokens: a template would take seconds to write them out."""
    if len(messages) > facts.context_length:
        raise too_long(facts.context_length, f"at least {len(messages)}")


@functools.lru_cache(maxsize=4)
def any_of(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(alternation([text for text in texts if text]))


def alternation(texts: Sequence[str]) -> str:
    """A regular expression of these texts, the longest first, that tries what they begin with once: vocabularies have
    thousands that begin alike."""
    head = os.path.commonprefix(texts)  # noqa: RUF071
    rests: dict[str, list[str]] = {}
    for text in texts:
        rests.setdefault(text[len(head) : len(head) + 1], []).append(text[len(head) :])
    ends = bool(rests.pop("", None))
    if not rests:
        return re.escape(head)
    branches = "|".join(alternation(rest) for rest in rests.values())
    return f"{re.escape(head)}(?:{branches}){'?' if ends else ''}"
