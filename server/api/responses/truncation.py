"""`truncation: auto`: whole turns are left out of the middle of a conversation that is longer than the context."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from enginehouse.runtimes.contract import Chat

Messages = list[dict[str, Any]]
ANSWER_SHARE = 8  # one part in so many of the context is left for the answer, where it is not said how long that is


def turns(messages: Messages) -> tuple[Messages, list[Messages]]:
    """What stands before the first question, and the turns, each with its question, calls, results and answer."""
    begins = [index for index, message in enumerate(messages) if message["role"] == "user"]
    first = begins[0] if begins else len(messages)
    ends = [*begins[1:], len(messages)]
    return messages[:first], [messages[begin:end] for begin, end in zip(begins, ends, strict=False)]


async def fitted(
    prompt: Chat, length: int, context: int, answer: int | None, count: Callable[[Chat], Awaitable[int]]
) -> tuple[Chat, int, int]:
    """A conversation of `length` tokens, how many of its turns were left out, and of how many: as few as make it fit
    beside an answer of so many tokens. The first turn and the last stay, the first as long as that is enough. `count`:
    tokens of what is left."""
    most = context - min(answer or context // ANSWER_SHARE, context // 2)
    head, spoken = turns(list(prompt.messages))

    def without(number: int) -> Chat:
        first, rest = (spoken[:1], spoken[1 + number :]) if number < len(spoken) - 1 else ([], spoken[number:])
        return msgspec.structs.replace(prompt, messages=head + [message for turn in first + rest for message in turn])

    if len(spoken) < 2 or length <= most:
        return prompt, 0, len(spoken)
    low, high = 1, len(spoken) - 1  # so many are enough: the last turn alone has to be taken as it is
    while low < high:
        middle = (low + high) // 2
        if await count(without(middle)) <= most:
            high = middle
        else:
            low = middle + 1
    return without(low), low, len(spoken)
