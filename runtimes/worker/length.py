"""Whether a text can fit a context, told from its letters alone, in one pass."""

from collections.abc import Sequence
from itertools import islice

from enginehouse.runtimes.contract import Facts
from enginehouse.runtimes.decoding.special_tokens import any_of
from enginehouse.runtimes.errors import TooLong


def check_text(text: str, facts: Facts) -> None:
    """Refuses what is more tokens than the context holds however it is tokenized."""
    context, least = facts.context_length, 0
    if facts.longest_token:
        least = -(-len(text.encode()) // facts.longest_token)
    if least <= context and facts.special_tokens:
        found = any_of(facts.special_tokens).finditer(text)
        least = sum(1 for _ in islice(found, context + 1))
    if least > context:
        raise TooLong(context, least, at_least=True)


def check_messages(messages: Sequence[object], facts: Facts) -> None:
    """Refuses more messages than the context holds tokens: a template would take seconds to write them out."""
    if len(messages) > facts.context_length:
        raise TooLong(facts.context_length, len(messages), at_least=True)
