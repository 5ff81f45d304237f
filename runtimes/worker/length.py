"""Whether a text can fit a context, told from its letters alone, in one pass."""

from collections.abc import Sequence
from itertools import islice

from enginehouse.runtimes.contract import Facts
from enginehouse.runtimes.decoding.special_tokens import any_of
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
