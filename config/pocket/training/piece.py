"""One exchange of a conversation, and the small draws all skills share."""

import zlib
from dataclasses import dataclass
from random import Random
from typing import Any

from enginehouse.config.pocket.training import words

Message = dict[str, Any]
UNKNOWN = "I don't know that; I am only a small demo model."


@dataclass(frozen=True)
class Piece:
    """One exchange: messages up to the question, the answer, a thought that may precede it."""

    messages: tuple[Message, ...]
    answer: Message
    thought: str
    key: str
    """What decides whether it is held out; empty: the text itself together with the system prompt."""
    tools: tuple[Message, ...] = ()
    system: str = ""
    names: tuple[str, ...] = ()
    fixed: str = ""
    """Text in the last question that sloppy wording must leave as it is."""


def held_out(key: str) -> bool:
    """Whether a combination belongs to the evaluation alone."""
    return bool(key) and zlib.crc32(key.encode()) % 16 == 0


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def says(text: str) -> Message:
    return {"role": "assistant", "content": text}


def calls(*wanted: tuple[str, dict[str, Any]]) -> Message:
    """An assistant message which calls these functions."""
    functions = [{"type": "function", "function": {"name": name, "arguments": args}} for name, args in wanted]
    return {"role": "assistant", "content": "", "tool_calls": functions}


def person(rng: Random) -> str:
    """A first name: every second one made up on the spot, so that only copying helps."""
    if rng.random() < 0.45:
        return rng.choice(words.NAMES)
    syllables = [rng.choice(words.ONSETS) + rng.choice(words.VOWELS) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
    return ("".join(syllables) + rng.choice(words.CODAS)).capitalize()


def place(rng: Random) -> str:
    """A city, at times one that does not exist."""
    return rng.choice(words.CITIES) if rng.random() < 0.75 else person(rng)


def some_words(rng: Random, low: int, high: int) -> list[str]:
    return rng.sample(words.WORDS, rng.randint(low, high))
