"""The conversations the pocket model learns from and is examined on: `sample(rng)` draws one.

Held-out means a new combination, never a new fact. Every piece of a conversation has a key (the pair of numbers, the
words, the wording and the country ...); one key in sixteen, chosen by its CRC, occurs in the evaluation only.
"""

from dataclasses import dataclass
from random import Random

from enginehouse.config.pocket.training import words
from enginehouse.config.pocket.training.piece import Message, Piece, held_out, user
from enginehouse.config.pocket.training.skills import SKILLS, persona
from enginehouse.config.pocket.training.tool_skills import tool

WEIGHTS = {
    "who": 2,
    "greet": 2,
    "capital": 7,
    "sum": 40,
    "count": 7,
    "copy": 7,
    "opposite": 6,
    "day": 6,
    "spell": 8,
    "list": 3,
    "recall": 6,
    "persona": 5,
    "json": 6,
    "story": 3,
    "unknown": 5,
    "tool": 9,
    "tools": 4,
    "tool_result": 3,
    "mixture": 7,
}


@dataclass(frozen=True)
class Conversation:
    """`messages` ends with the assistant's answer, whose `reasoning_content` is set when `thinking`."""

    messages: list[Message]
    tools: list[Message] | None
    thinking: bool
    skill: str
    names: tuple[str, ...]


def sample(rng: Random, evaluation: bool = False, skill: str = "") -> Conversation:
    """Draws a conversation: from the training stream, or one that the training stream never holds."""
    while True:
        conversation = _draw(rng, evaluation, skill)
        if conversation:
            return conversation


def _draw(rng: Random, evaluation: bool, skill: str) -> Conversation | None:
    skill = skill or rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    last_skill = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] if skill == "mixture" else skill
    while last_skill == "mixture":
        last_skill = rng.choice(list(SKILLS))
    last = SKILLS[last_skill](rng)
    if skill == "mixture" and last_skill == "recall" and not last.key:
        return None
    system = last.system or (rng.choice(words.SYSTEMS) if rng.random() < 0.4 else "")
    if not last.system and last_skill != "who" and rng.random() < 0.04:
        system = persona(rng).system
    before = (
        [_opening(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 2, 3, 3, 4, 6, 12)))] if skill == "mixture" else []
    )
    tools = list(last.tools)
    if not tools and rng.random() < 0.06:
        tools = [tool(rng, kind) for kind in rng.sample(("weather", "mail", "timer", "book"), rng.randint(1, 2))]

    messages = [{"role": "system", "content": system}] if system else []
    for piece in before:
        messages += [*piece.messages, piece.answer]
    question = list(last.messages)
    if question[-1]["role"] == "user" and rng.random() < 0.15:
        question[-1] = user(_sloppy(rng, question[-1]["content"], last.fixed))
    own = last.key or f"{system}|{question[-1]['content']}"
    important = question[-1]["content"] in words.IMPORTANT
    if (held_out(own) and not important) != evaluation or any(held_out(piece.key) for piece in before):
        return None
    thinking = rng.random() < 0.15
    answer = dict(last.answer, reasoning_content=last.thought) if thinking else last.answer
    names = tuple(name for piece in (*before, last) for name in piece.names)
    return Conversation([*messages, *question, answer], tools or None, thinking, skill, names)


def _opening(rng: Random) -> Piece:
    """An earlier exchange of a longer conversation; without tools and without a long answer."""
    return SKILLS[rng.choice(("capital", "sum", "copy", "opposite", "day", "spell", "greet", "unknown", "recall"))](rng)


def _sloppy(rng: Random, text: str, fixed: str) -> str:
    """Lower case, missing punctuation, a 'please'; `fixed` stays as it was."""
    head, found, tail = text.partition(fixed) if fixed else (text, "", "")
    if rng.random() < 0.7:
        head, tail = head.lower(), tail.lower()
    text = head + found + tail
    if rng.random() < 0.5:
        text = text.rstrip("?.!")
    if rng.random() < 0.15:
        text = "please " + text[:1].lower() + text[1:]
    return text
