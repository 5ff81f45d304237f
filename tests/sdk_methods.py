"""Every method of the openai and anthropic packages against a server, strict about what comes back: what works, what is
refused by name, and what is not there.

`python -m tests.sdk_methods` writes the table of docs/clients.md.
"""

import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import openai

from tests.serving import Served, serve

PAGE = Path(__file__).parent.parent / "docs" / "clients.md"
BEGIN, END = "<!-- made by tests/sdk_methods.py -->\n", "<!-- end of the methods -->\n"
MODELS = {"echo": {"source": "builtin:echo"}, "pocket": {"source": "builtin:pocket", "runtime": "llamacpp"}}
# What asks no server, or asks one again and again by methods that are listed themselves.
HELPERS = re.compile(r"^(with_|_)|poll|wait_for|chunked|construct_event|unwrap|verify_|tool_runner|^work$|^worker$")
REPEATED = {openai.OpenAI: ("beta",)}  # what is there else, and what only OpenAI has
WORKS, REFUSED, ABSENT = "works", "refused by name", "absent"
HI: Any = [{"role": "user", "content": "hi"}]
Call = Callable[[], Any]


def methods(client: Any, where: str = "") -> Iterator[tuple[str, Call]]:
    """All that ask a server, by their full names."""
    for name in sorted(dir(type(client))):
        found = inspect.getattr_static(type(client), name)
        if HELPERS.search(name) or (
            not where and (inspect.isfunction(found) or name in REPEATED.get(type(client), ()))
        ):
            continue
        if type(found).__name__ == "cached_property":
            yield from methods(getattr(client, name), f"{where}{name}.")
        elif inspect.isfunction(found):
            yield f"{where}{name}", getattr(client, name)


def anything(method: Call) -> dict[str, Any]:
    """Arguments that it takes: enough to see whether there is such a route."""
    return {
        name: value_for(name, str(parameter.annotation))
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    }


def value_for(name: str, annotation: str) -> Any:
    if "File" in annotation:
        return b"x"
    for word, value in (
        ("Iterable", []),
        ("SequenceNotStr", []),
        ("List", []),
        ("Dict", {}),
        ("int", 1),
        ("bool", True),
    ):
        if annotation.startswith((word, f"Union[{word}", f"Optional[{word}")):
            return value
    return {} if annotation.endswith("Param") or ".Param" in annotation else "x"


def of_openai(client: openai.OpenAI, lenient: openai.OpenAI) -> dict[str, Call]:
    """As they are used. `lenient`: for a method whose type is wrong: it knows messages of the assistant's alone."""
    chat, responses, conversations = client.chat.completions, client.responses, client.conversations

    def stored() -> str:
        return chat.create(model="echo", messages=HI, store=True, metadata={"a": "b"}).id

    def response(**fields: Any) -> str:
        made: str = responses.create(model="echo", input="hi", **fields).id
        return made

    def conversation() -> str:
        return conversations.create(items=HI).id

    def item(id: str) -> str:
        return str(conversations.items.list(id).data[0].id)

    def in_conversation(use: Callable[[str, str], Any]) -> Call:
        def call() -> Any:
            id = conversation()
            return use(id, item(id))

        return call

    def streamed(stream: Any) -> Any:
        with stream as events:
            return list(events)[-1]

    def over_websocket() -> Any:
        with responses.connect() as connection:
            connection.response.create(model="echo", input="hi")
            return connection.recv()

    def file() -> str:
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": say}
        return client.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch").id

    def batch() -> str:
        made = client.batches.create(input_file_id=file(), endpoint="/v1/chat/completions", completion_window="24h")
        return made.id

    say = {"model": "echo", "messages": HI}
    return {
        "files.create": file,
        "files.list": lambda: [file(), client.files.list().data[0]],
        "files.retrieve": lambda: client.files.retrieve(file()),
        "files.content": lambda: client.files.content(file()).text,
        "files.retrieve_content": lambda: client.files.retrieve_content(file()),
        "files.delete": lambda: client.files.delete(file()),
        "batches.create": batch,
        "batches.list": lambda: [batch(), client.batches.list().data[0]],
        "batches.retrieve": lambda: client.batches.retrieve(batch()),
        "batches.cancel": lambda: client.batches.cancel(batch()),
        "models.list": lambda: client.models.list().data[0],
        "models.retrieve": lambda: client.models.retrieve("echo"),
        "embeddings.create": lambda: client.embeddings.create(model="pocket", input="hi", encoding_format="float"),
        "completions.create": lambda: client.completions.create(model="echo", prompt="hi"),
        "chat.completions.create": lambda: chat.create(**say),
        "chat.completions.parse": lambda: chat.parse(**say),
        "chat.completions.stream": lambda: streamed(chat.stream(**say)),
        "chat.completions.list": lambda: [stored(), chat.list().data[0]],
        "chat.completions.retrieve": lambda: chat.retrieve(stored()),
        "chat.completions.update": lambda: chat.update(stored(), metadata={"c": "d"}),
        "chat.completions.delete": lambda: chat.delete(stored()),
        "chat.completions.messages.list": lambda: lenient.chat.completions.messages.list(stored()).data[0],
        "responses.create": response,
        "responses.parse": lambda: responses.parse(model="echo", input="hi"),
        "responses.stream": lambda: streamed(responses.stream(model="echo", input="hi")),
        "responses.connect": over_websocket,
        "responses.retrieve": lambda: responses.retrieve(response()),
        "responses.cancel": lambda: responses.cancel(response(background=True)),
        "responses.delete": lambda: responses.delete(response()),
        "responses.compact": lambda: responses.compact(model="echo", input="hi"),
        "responses.input_items.list": lambda: responses.input_items.list(response()).data[0],
        "responses.input_tokens.count": lambda: responses.input_tokens.count(model="echo", input="hi"),
        "conversations.create": conversation,
        "conversations.retrieve": lambda: conversations.retrieve(conversation()),
        "conversations.update": lambda: conversations.update(conversation(), metadata={"a": "b"}),
        "conversations.delete": lambda: conversations.delete(conversation()),
        "conversations.items.create": lambda: conversations.items.create(conversation(), items=HI),
        "conversations.items.list": lambda: conversations.items.list(conversation()).data[0],
        "conversations.items.retrieve": in_conversation(
            lambda id, item: conversations.items.retrieve(item, conversation_id=id)
        ),
        "conversations.items.delete": in_conversation(
            lambda id, item: conversations.items.delete(item, conversation_id=id)
        ),
    }


def of_anthropic(client: anthropic.Anthropic) -> dict[str, Call]:
    found: dict[str, Call] = {}
    say: Any = {"model": "echo", "messages": HI, "max_tokens": 100}

    def add(where: str, messages: Any, models: Any) -> None:
        def streamed() -> Any:
            with messages.stream(**say) as stream:
                return stream.get_final_message()

        found.update(
            {
                f"{where}messages.create": lambda: messages.create(**say),
                f"{where}messages.parse": lambda: messages.parse(**say),
                f"{where}messages.stream": streamed,
                f"{where}messages.count_tokens": lambda: messages.count_tokens(model="echo", messages=HI),
                f"{where}models.list": lambda: models.list().data[0],
                f"{where}models.retrieve": lambda: models.retrieve("echo"),
            }
        )

    add("", client.messages, client.models)
    add("beta.", client.beta.messages, client.beta.models)
    return found


def result(method: Call, used: Call | None) -> str:
    """ "" of one that asks nothing, and of one whose arguments nobody could guess."""
    try:
        if used:
            used()
            return WORKS
        method(**anything(method))
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return ABSENT if not_there(error) else REFUSED
    except (TypeError, ValueError, AttributeError, RuntimeError):
        if used:
            raise
    return ""


def results(served: Served) -> dict[str, dict[str, str]]:
    """By package and method."""
    options: Any = {"api_key": "any", "max_retries": 0, "timeout": 60, "_strict_response_validation": True}
    gpt: Any = openai.OpenAI(base_url=f"{served.root}/v1", admin_api_key="any", **options)
    claude: Any = anthropic.Anthropic(base_url=served.root, **options)
    found: dict[str, dict[str, str]] = {}
    for package, client, used in (
        ("openai", gpt, of_openai(gpt, served.client)),
        ("anthropic", claude, of_anthropic(claude)),
    ):
        known = dict(methods(client))
        assert not used.keys() - known.keys(), used.keys() - known.keys()
        outcomes = {name: result(method, used.get(name)) for name, method in known.items()}
        found[package] = {name: outcome for name, outcome in outcomes.items() if outcome}
    return found


def not_there(error: openai.APIStatusError | anthropic.APIStatusError) -> bool:
    """No such path, or none of that method."""
    return error.status_code in (404, 405) and "there is no " in str(error)


def table(found: Mapping[str, Mapping[str, str]]) -> str:
    """A row for each resource; those of which nothing is there by their first names alone."""
    rows = ["| package | resource | works | refused by name | absent |", "|---|---|---|---|---|"]
    for package, by_method in found.items():
        by_resource: dict[str, dict[str, list[str]]] = {}
        for method, outcome in by_method.items():
            resource, _, name = method.rpartition(".")
            by_resource.setdefault(resource, {}).setdefault(outcome, []).append(name)
        gone: dict[str, int] = {}
        for resource, outcomes in by_resource.items():
            if outcomes.keys() == {ABSENT}:
                first = ".".join(resource.split(".")[: 2 if resource.startswith("beta.") else 1])
                gone[first] = gone.get(first, 0) + len(outcomes[ABSENT])
                continue
            cells = [", ".join(f"`{name}`" for name in outcomes.get(one, ())) for one in (WORKS, REFUSED, ABSENT)]
            rows.append(f"| {package} | `{resource}` | {' | '.join(cells)} |")
        names = ", ".join(f"`{name}` ({number})" for name, number in gone.items())
        rows.append(f"| {package} | others | | | {names} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), MODELS) as served:
        made = table(results(served))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{made}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
