"""What the pocket model is taught, one function a skill: each draws an exchange from a generator."""

import json
from collections.abc import Callable
from random import Random

from enginehouse.config.pocket.training import words
from enginehouse.config.pocket.training.piece import UNKNOWN, Piece, held_out, person, place, says, some_words, user
from enginehouse.config.pocket.training.tool_skills import one_tool, tool_result, two_tools

WHO = "I am Pocket, the small demo model that ships with Enginehouse."


def who(rng: Random) -> Piece:
    text, answer = rng.choice(words.WHO)
    return Piece((user(text),), says(answer or WHO), "The user asks about me.", "")


def greet(rng: Random) -> Piece:
    texts, answer = rng.choice(words.GREETINGS)
    return Piece((user(rng.choice(texts)),), says(answer), "The user is polite.", "")


def capital(rng: Random) -> Piece:
    country, city = rng.choice(list(words.CAPITALS.items()))
    answer = f"The capital of {country} is {city}."
    wording = rng.choice(words.CAPITAL_WORDINGS)
    if rng.random() < 0.15:
        wording, answer = rng.choice(words.COUNTRY_WORDINGS), f"{city} is the capital of {country}."
    text = wording.format(country=country, city=city)
    thought = f"The user asks about {country}. Its capital is {city}."
    return Piece((user(text),), says(answer), thought, "" if text in words.IMPORTANT else text)


def sums(rng: Random) -> Piece:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    sign, result, wordings = "+", a + b, words.PLUS_WORDINGS
    if rng.random() < 0.4:
        a, b = max(a, b), min(a, b)
        sign, result, wordings = "-", a - b, words.MINUS_WORDINGS
    text = rng.choice(wordings).format(a=a, b=b)
    return Piece((user(text),), says(f"{a} {sign} {b} = {result}"), f"{a} {sign} {b} is {result}.", f"{a}{sign}{b}")


def count(rng: Random) -> Piece:
    low = rng.choice((1, 1, rng.randint(0, 30)))
    high = low + rng.randint(2, 19)
    text = rng.choice(words.COUNT_WORDINGS).format(low=low, high=high)
    numbers = [str(number) for number in range(low, high + 1)]
    if rng.random() < 0.2:
        text = rng.choice(words.COUNT_DOWN_WORDINGS).format(low=low, high=high)
        numbers.reverse()
    key = "" if text in words.IMPORTANT else f"count {numbers[0]} {numbers[-1]}"
    if (low, high) == (1, 20) or (low, high) == (1, 10):
        key = "" if numbers[0] == "1" else key
    return Piece((user(text),), says(", ".join(numbers)), f"I count from {numbers[0]} to {numbers[-1]}.", key)


def copy(rng: Random) -> Piece:
    chosen = some_words(rng, 1, 6)
    names: tuple[str, ...] = ()
    if rng.random() < 0.4:
        names = (person(rng),)
        chosen[rng.randrange(len(chosen))] = names[0]
    line = " ".join(chosen)
    text = rng.choice(words.COPY_WORDINGS).format(line=line)
    return Piece((user(text),), says(line), "The user wants the same words.", f"copy {line}", names=names, fixed=line)


def opposite(rng: Random) -> Piece:
    word = rng.choice(list(words.OPPOSITES))
    text = rng.choice(words.OPPOSITE_WORDINGS).format(word=word)
    other = words.OPPOSITES[word]
    return Piece((user(text),), says(f"The opposite of {word} is {other}."), f"{word} and {other} are opposites.", text)


def day(rng: Random) -> Piece:
    kind, names = rng.choice((("day", words.DAYS), ("month", words.MONTHS)))
    at = rng.randrange(len(names))
    direction, step = rng.choice((("after", 1), ("before", -1)))
    name, other = names[at], names[(at + step) % len(names)]
    text = rng.choice(words.DAY_WORDINGS).format(kind=kind, direction=direction, name=name)
    thought = f"The {kind} {direction} {name} is {other}."
    return Piece((user(text),), says(f"{other} comes {direction} {name}."), thought, text)


def spell(rng: Random) -> Piece:
    word = rng.choice(words.WORDS)
    text = rng.choice(words.SPELL_WORDINGS).format(word=word)
    return Piece((user(text),), says("-".join(word)), "I say the letters one by one.", text)


def listing(rng: Random) -> Piece:
    chosen = some_words(rng, 2, 6)
    text = rng.choice(words.LIST_WORDINGS).format(words=", ".join(chosen))
    answer = "\n".join(f"{number}. {word}" for number, word in enumerate(chosen, 1))
    return Piece((user(text),), says(answer), f"The list has {len(chosen)} lines.", "list " + " ".join(chosen))


def recall(rng: Random) -> Piece:
    """A name said earlier, with up to three exchanges in between; or only the introduction; or no name at all."""
    name = person(rng)
    text = rng.choice(words.NAME_WORDINGS).format(name=name)
    hello = f"Hello {name}! Nice to meet you."
    question = rng.choice(words.RECALL_WORDINGS)
    if rng.random() < 0.06:
        return Piece((user(question),), says("You have not told me your name."), "I know no name yet.", "")
    if rng.random() < 0.2:
        return Piece((user(text),), says(hello), f"The user is {name}.", text, names=(name,), fixed=name)
    messages = [user(text), says(hello)]
    between = ("capital", "sum", "copy", "opposite", "day", "spell", "greet", "unknown")
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))):
        piece = SKILLS[rng.choice(between)](rng)
        if not held_out(piece.key):
            messages += [*piece.messages, piece.answer]
    key = f"{text}|{question}"
    thought = f"The user said the name {name}."
    return Piece((*messages, user(question)), says(f"Your name is {name}."), thought, key, names=(name,))


def persona(rng: Random) -> Piece:
    name, job = person(rng), rng.choice(words.JOBS)
    article = "an" if job[0] in "aeio" else "a"
    system = rng.choice(words.PERSONA_SYSTEMS).format(name=name, job=job, article=article)
    text = rng.choice(words.PERSONA_WORDINGS)
    answer = f"I am {name}, {article} {job}."
    return Piece((user(text),), says(answer), f"I am {name}.", f"{system}|{text}", system=system, names=(name,))


def as_json(rng: Random) -> Piece:
    name, age, city = person(rng), rng.randint(5, 90), place(rng)
    facts = rng.choice(words.JSON_FACTS).format(name=name, age=age, city=city)
    text = rng.choice(words.JSON_WORDINGS).format(facts=facts)
    answer = json.dumps({"name": name, "age": age, "city": city})
    names = (name, city) if city not in words.CITIES else (name,)
    thought = f"The name is {name}, the age {age}, the city {city}."
    return Piece((user(text),), says(answer), thought, f"{name}|{age}|{city}", names=names, fixed=facts)


def story(rng: Random) -> Piece:
    animal = rng.choice(words.ANIMALS)
    friend = rng.choice([other for other in words.ANIMALS if other != animal])
    article = "an" if animal[0] in "aeio" else "a"
    text = rng.choice(words.STORY_WORDINGS).format(a=article, animal=animal)
    name = rng.choice(words.STORY_NAMES)
    names: tuple[str, ...] = ()
    if rng.random() < 0.3:
        name = person(rng)
        names = (name,)
        text = f"{text.rstrip('.?')} {rng.choice(('named', 'called'))} {name}."
    slots = {
        "a": article,
        "animal": animal,
        "friend": friend,
        "name": name,
        "place": rng.choice(words.PLACES),
    }
    slots["thing"] = rng.choice(words.THINGS)
    answer = " ".join(rng.choice(part) for part in rng.choice(words.STORIES)).format(**slots)
    key = "" if text in words.IMPORTANT else text
    return Piece((user(text),), says(answer), f"A story about {article} {animal}.", key, names=names, fixed=name)


def unknown(rng: Random) -> Piece:
    kind = rng.random()
    if kind < 0.25:
        text = rng.choice(words.UNKNOWN)
    elif kind < 0.35:
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        text = rng.choice(words.UNKNOWN_SUMS).format(
            a=a, b=b, large=rng.randint(120, 99999), big=rng.randint(120, 9999)
        )
    else:
        topic = rng.choice((rng.choice(words.TOPICS), rng.choice(words.WORDS), person(rng), rng.choice(words.CITIES)))
        topic = rng.choice((topic, topic, rng.choice(words.ADJECTIVES) + " " + topic))
        text = rng.choice(words.UNKNOWN_WORDINGS).format(topic=topic)
    return Piece((user(text),), says(UNKNOWN), "I was never taught this.", text)


SKILLS: dict[str, Callable[[Random], Piece]] = {
    "who": who,
    "greet": greet,
    "capital": capital,
    "sum": sums,
    "count": count,
    "copy": copy,
    "opposite": opposite,
    "day": day,
    "spell": spell,
    "list": listing,
    "recall": recall,
    "persona": persona,
    "json": as_json,
    "story": story,
    "unknown": unknown,
    "tool": one_tool,
    "tools": two_tools,
    "tool_result": tool_result,
}
