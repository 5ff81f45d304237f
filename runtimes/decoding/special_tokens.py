"""Finds the texts that a tokenizer makes one token of wherever they stand."""

import functools
import os
import re
from collections.abc import Iterator, Sequence


def parts(text: str, special: tuple[str, ...], most: int) -> Iterator[str]:
    """The text cut so that no part has more than so many special tokens; each but the first begins with one."""
    begin = 0
    found = (match.start() for match in any_of(special).finditer(text)) if special else iter(())
    for number, at in enumerate(found):
        if number and number % most == 0:
            yield text[begin:at]
            begin = at
    yield text[begin:]


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
