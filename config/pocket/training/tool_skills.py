"""The skills that use tools: one call, two calls at once, and the answer from what a tool returned."""

import json
from random import Random
from typing import Any

from enginehouse.config.pocket.training import words
from enginehouse.config.pocket.training.piece import (
    UNKNOWN,
    Message,
    Piece,
    calls,
    person,
    place,
    says,
    some_words,
    user,
)

Calls = list[tuple[str, dict[str, Any]]]


def one_tool(rng: Random) -> Piece:
    kind = rng.choices(list(TOOLS), (4, 3, 3, 4, 2, 2, 2))[0]
    offered = _offer(rng, [kind])
    text, values, _, _, names = request(rng, kind)
    if rng.random() < 0.08:
        others = _offer(rng, [rng.choice([other for other in TOOLS if other != kind])], but=kind)
        tools = tuple(others.values())
        return Piece((user(text),), says(UNKNOWN), "No tool does this.", f"none {text}", tools, names=names)
    name, arguments = call_of(offered[kind], values)
    thought = f"I call {name}."
    fixed = " ".join(map(str, values)) if len(values) == 1 else ""
    key, tools = f"{kind} {values}", tuple(offered.values())
    question = user(text)
    if kind == "mail":
        fixed = text
    return Piece((question,), calls((name, arguments)), thought, key, tools, names=names, fixed=fixed)


def two_tools(rng: Random) -> Piece:
    """Two calls at once: the same function twice or the weather and the time."""
    question, wanted, _, _, tools, names = _parallel(rng)
    key = json.dumps([list(arguments.values()) for _, arguments in wanted])
    return Piece((user(question),), calls(*wanted), "I need two calls.", key, tools, names=names, fixed=question)


def tool_result(rng: Random) -> Piece:
    if rng.random() < 0.25:
        text, wanted, results, answer, tools, names = _parallel(rng)
    else:
        kind = rng.choice(list(TOOLS))
        offered = _offer(rng, [kind])
        text, values, result, answer, names = request(rng, kind)
        wanted, results, tools = [call_of(offered[kind], values)], [result], tuple(offered.values())
    replies = [{"role": "tool", "content": json.dumps(result)} for result in results]
    key = f"{[arguments for _, arguments in wanted]}{results}"
    return Piece(
        (user(text), calls(*wanted), *replies),
        says(answer),
        "The tool has answered.",
        key,
        tools,
        names=names,
    )


def _parallel(
    rng: Random,
) -> tuple[str, Calls, list[dict[str, Any]], str, tuple[Message, ...], tuple[str, ...]]:
    cities = [place(rng), place(rng)]
    first, second = rng.choice((("weather", "weather"), ("time", "time"), ("weather", "time"), ("time", "weather")))
    if first != second and rng.random() < 0.5:
        cities[1] = cities[0]
    offered = _offer(rng, list({first: None, second: None}))
    text = rng.choice(words.PARALLEL_WORDINGS[first == second]).format(
        first=words.PARALLEL_NOUNS[first], second=words.PARALLEL_NOUNS[second], a=cities[0], b=cities[1]
    )
    wanted = [call_of(offered[kind], [city]) for kind, city in zip((first, second), cities, strict=True)]
    readings = [_reading(rng, kind, city) for kind, city in zip((first, second), cities, strict=True)]
    answer = " ".join(sentence for _, sentence in readings)
    names = tuple(city for city in cities if city not in words.CITIES)
    return text, wanted, [result for result, _ in readings], answer, tuple(offered.values()), names


def _offer(rng: Random, needed: list[str], but: str = "") -> dict[str, Message]:
    """The tools of a request in random order: those needed and up to two others."""
    others = [kind for kind in TOOLS if kind not in needed and kind != but]
    kinds = needed + rng.sample(others, rng.choice((0, 0, 0, 1, 1, 2)))
    rng.shuffle(kinds)
    return {kind: tool(rng, kind) for kind in kinds}


def tool(rng: Random, kind: str) -> Message:
    """One function of this kind as a client might declare it: its names vary, so the model must read them."""
    names, description, parameters = TOOLS[kind]
    properties = {rng.choice(options): {"type": type_} for options, type_ in parameters}
    if rng.random() < 0.2:
        for name, property_ in properties.items():
            property_["description"] = f"The {name}"
    schema: Message = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": rng.choice(names), "description": rng.choice(description), "parameters": schema}
    return {"type": "function", "function": function}


def call_of(declared: Message, values: list[Any]) -> tuple[str, dict[str, Any]]:
    function = declared["function"]
    return function["name"], dict(zip(function["parameters"]["properties"], values, strict=True))


def request(rng: Random, kind: str) -> tuple[str, list[Any], dict[str, Any], str, tuple[str, ...]]:
    """A wish a tool can fulfil: question, arguments, what the tool returns, the answer from it, names used."""
    names: tuple[str, ...] = ()
    if kind in ("weather", "time"):
        city = place(rng)
        names = () if city in words.CITIES else (city,)
        values: list[Any] = [city]
        result, answer = _reading(rng, kind, city)
    elif kind == "add":
        values = [rng.randint(10, 999), rng.randint(10, 999)]
        result, answer = {"sum": sum(values)}, f"The sum is {sum(values)}."
    elif kind == "mail":
        values = [person(rng), " ".join(some_words(rng, 1, 4))]
        names = (values[0],)
        result, answer = {"sent": True}, f"I sent the mail to {values[0]}."
    elif kind == "book":
        values = [" ".join(some_words(rng, 1, 3))]
        shelf = rng.randint(1, 99)
        result, answer = {"found": True, "shelf": shelf}, f"The book {values[0]} is on shelf {shelf}."
    elif kind == "timer":
        values = [rng.randint(1, 90)]
        result, answer = {"started": True}, f"The timer is set to {values[0]} minutes."
    else:
        values = [" ".join(some_words(rng, 1, 3))]
        number = rng.randint(0, 99)
        result, answer = {"results": number}, f"I found {number} results for {values[0]}."
    return rng.choice(words.TOOL_WORDINGS[kind]).format(*values), values, result, answer, names


def _reading(rng: Random, kind: str, city: str) -> tuple[dict[str, Any], str]:
    if kind == "time":
        clock = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        return {"time": clock}, f"It is {clock} in {city}."
    sky, degrees = rng.choice(words.SKIES), rng.randint(0, 35)
    result: dict[str, Any] = {rng.choice(("degrees", "temperature")): degrees}
    result = {"sky": sky, **result} if rng.random() < 0.6 else {**result, "sky": sky}
    return result, f"The weather in {city} is {sky}, {degrees} degrees."


TOOLS: dict[str, tuple[tuple[str, ...], tuple[str, ...], list[tuple[tuple[str, ...], str]]]] = {
    "weather": (
        ("get_weather", "get_weather", "get_current_weather", "weather"),
        ("Current weather in a city", "Get the current weather", "Get the weather in a given location"),
        [(("city", "city", "location", "place"), "string")],
    ),
    "time": (
        ("get_time", "get_current_time", "clock"),
        ("Current time in a city", "Get the current time"),
        [(("city", "city", "location", "place"), "string")],
    ),
    "add": (
        ("add", "add_numbers", "sum"),
        ("Add two numbers", "Returns the sum of two numbers"),
        [(("a", "x", "first"), "number"), (("b", "y", "second"), "number")],
    ),
    "mail": (
        ("send_mail", "send_email", "mail"),
        ("Send a mail", "Send an email to a person"),
        [(("to", "recipient"), "string"), (("text", "body", "message"), "string")],
    ),
    "book": (
        ("find_book", "search_library"),
        ("Find a book by title", "Look for a book"),
        [(("title", "book"), "string")],
    ),
    "timer": (
        ("set_timer", "start_timer"),
        ("Set a timer", "Start a timer"),
        [(("minutes",), "integer")],
    ),
    "search": (
        ("search", "web_search"),
        ("Search the web", "Look something up"),
        [(("query", "q"), "string")],
    ),
}
