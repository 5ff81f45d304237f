"""What coding agents send, as recorded of the clients in the versions that each file names (long texts cut short, ids
replaced), is answered in the dialect that they read. And a whole turn with `echo`, which calls what it is told to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from enginehouse.server.api.responses.tools import function_name
from enginehouse.server.api.tools import short_name
from tests.serving import Served, serve

RECORDED = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "fixtures/agents").iterdir())
}
MODELS = {"echo": {"source": "builtin:echo", "context": 100_000}}  # a model of any engine, with the room for it
LEFT_OUT = "x-enginehouse-tools-left-out"


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("agents"), MODELS) as served:
        yield served


def post(served: Served, name: str, **change: Any) -> httpx.Response:
    recorded = RECORDED[name]
    body = recorded["body"] | change
    return httpx.post(served.root + recorded["path"], json=body, headers=recorded["headers"], timeout=120)


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(one) for one in data if one != "[DONE]"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", RECORDED)
def test_what_an_agent_sends_is_answered_in_its_dialect(agents: Served, name: str, model: str) -> None:
    reply = post(agents, name, model=model, stream=True)
    assert reply.status_code == 200, reply.text
    streamed, whole = events(reply), post(agents, name, model=model, stream=False, stream_options=None).json()
    match RECORDED[name]["path"].partition("?")[0]:
        case "/v1/responses":
            assert streamed[-1]["type"] == "response.completed"
            assert whole["output"]
        case "/v1/messages":
            assert streamed[-1]["type"] == "message_stop"
            assert whole["content"]
        case "/v1/chat/completions":
            ends = {choice["finish_reason"] for chunk in streamed for choice in chunk["choices"]} - {None}
            assert ends | {whole["choices"][0]["finish_reason"]} <= {"stop", "tool_calls"}
            assert ends


@pytest.mark.parametrize("name", ["codex-first", "codex-custom", "claude-code-first", "claude-code-result"])
def test_the_tokens_of_what_an_agent_sends_are_counted(agents: Served, name: str) -> None:
    recorded = RECORDED[name]
    body = {key: value for key, value in recorded["body"].items() if key not in ("stream", "stream_options")}
    path = recorded["path"].partition("?")[0]
    if path == "/v1/messages":
        counted = {"model", "messages", "system", "tools", "tool_choice", "thinking", "output_config"}
        path, body = f"{path}/count_tokens", {key: value for key, value in body.items() if key in counted}
    else:
        path = f"{path}/input_tokens"
    reply = httpx.post(agents.root + path, json=body, headers=recorded["headers"])
    assert (reply.status_code, reply.json().get("input_tokens", 0) > 0) == (200, True), reply.text


def answer(reply: httpx.Response) -> str:
    """The text of an answer of /v1/responses or /v1/messages, whole."""
    body = reply.json()
    parts = body.get("content") or [part for item in body["output"] for part in item.get("content", [])]
    return "".join(part.get("text", "") for part in parts)


def test_an_image_in_a_tools_result_is_named_and_the_session_goes_on(agents: Served) -> None:
    for name in ("claude-code-image", "codex-image"):
        assert answer(post(agents, name, stream=False)) == (
            "[an image stood here, and is left out: this model reads text alone]"
        )


def test_a_tool_that_was_found_is_named_and_so_is_one_that_is_gone(agents: Served) -> None:
    tools = RECORDED["claude-code-tool-search"]["body"]["tools"]
    assert answer(post(agents, "claude-code-tool-search", stream=False)) == "found the tool 'WebFetch'"
    gone = [tool for tool in tools if tool["name"] != "WebFetch"]
    assert "'WebFetch', which is not" in answer(post(agents, "claude-code-tool-search", stream=False, tools=gone))


def test_hosted_tools_that_are_merely_offered_are_left_out_and_named(agents: Served) -> None:
    reply = post(agents, "codex-custom", stream=False)
    assert reply.headers[LEFT_OUT] == "tool_search, web_search"
    assert not {"tool_search", "web_search"} & {tool["type"] for tool in reply.json()["tools"]}
    agents.wait_for("tools that do not run here are left out: tool_search, web_search")
    assert post(agents, "codex-first").headers[LEFT_OUT] == "web_search"
    assert LEFT_OUT not in post(agents, "codex-namespaces").headers
    forced = post(agents, "codex-first", tool_choice={"type": "web_search"})
    assert (forced.status_code, "web_search" in forced.json()["error"]["message"]) == (400, True)


# --- whole turns ---


def call(name: str, **arguments: Any) -> str:
    """What makes echo call a function."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


PATCH = '*** Begin Patch\n*** Add File: "a".txt\n+hi\n*** End Patch\n'
NAMESPACE: Any = {
    "type": "namespace",
    "name": "crew",
    "description": "Agents.",
    "tools": [
        {"type": "function", "name": "close", "parameters": {"type": "object", "properties": {}}},
        {"type": "custom", "name": "order"},
    ],
}
CUSTOM: Any = {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}}  # fmt: skip  # noqa: E501
CALLS: list[tuple[Any, str, dict[str, Any]]] = [
    (NAMESPACE, call("crew__close"), {"type": "function_call", "name": "close", "namespace": "crew"}),
    (NAMESPACE, call("crew__order", input="go"), {"type": "custom_tool_call", "name": "order", "namespace": "crew", "input": "go"}),  # noqa: E501
    (NAMESPACE | {"name": "functions"}, call("close"), {"type": "function_call", "name": "close", "namespace": "functions"}),  # noqa: E501
    (NAMESPACE | {"name": "mcp__git__"}, call("mcp__git__close"), {"name": "close", "namespace": "mcp__git__"}),
    (CUSTOM, call("apply_patch", input=PATCH), {"type": "custom_tool_call", "name": "apply_patch", "input": PATCH}),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "said", "expected"), CALLS)
@pytest.mark.parametrize("brought", [False, True], ids=["tools", "additional_tools"])
def test_a_tool_of_codex_is_called_by_the_name_it_has_there(
    agents: Served, tool: Any, said: str, expected: dict[str, Any], brought: bool
) -> None:
    asked: list[Any] = [{"role": "user", "content": said}]
    bringing = {"type": "additional_tools", "role": "developer", "tools": [tool]}
    given: Any = {"input": [bringing, *asked]} if brought else {"input": asked, "tools": [tool]}
    with agents.client.responses.stream(model="echo", store=False, **given) as stream:
        seen = list(stream)
    (called,) = seen[-1].response.output  # type: ignore[union-attr]
    shown = called.to_dict()
    assert shown == shown | expected
    kinds = [event.type for event in seen]
    kind = "custom_tool_call_input" if called.type == "custom_tool_call" else "function_call_arguments"
    assert f"response.{kind}.done" in kinds
    create: Any = agents.client.responses.create
    whole = create(model="echo", store=False, **given).output[0].to_dict()
    assert whole == whole | expected

    result = {"type": f"{called.type}_output", "call_id": whole["call_id"], "output": "it is done"}
    then = create(model="echo", **given | {"input": [*given["input"], whole, result]})
    assert then.output_text == "it is done"


def test_a_history_with_a_search_for_tools_goes_on_and_what_was_found_can_be_called(agents: Served) -> None:
    found = {"type": "function", "name": "later", "parameters": {"type": "object"}, "defer_loading": True}
    history: list[Any] = [
        {"role": "user", "content": "find it"},
        {"type": "tool_search_call", "call_id": "s1", "execution": "client", "arguments": {"query": "later"}},
        {"type": "tool_search_output", "call_id": "s1", "execution": "client", "tools": [found]},
    ]
    create: Any = agents.client.responses.create
    assert create(model="echo", input=history).output_text == "found: later"
    (called,) = create(model="echo", input=[*history, {"role": "user", "content": call("later")}]).output
    assert (called.type, called.name) == ("function_call", "later")
    hosted = [item | {"call_id": None} for item in history[1:]]
    assert create(model="echo", input=[history[0], *hosted]).output_text == "find it"
    with pytest.raises(openai.BadRequestError, match=r"input\[0\].call_id"):
        create(model="echo", input=history[2:])


@pytest.mark.parametrize("namespace", ["mcp__" + "n" * 70, None], ids=["namespace", "plain"])
def test_a_tool_with_a_long_name_keeps_it_before_its_client(agents: Served, namespace: str | None) -> None:
    names = ["t" * 70 + end for end in "ab"]  # whose first 64 letters are the same
    tools: list[Any] = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in names]
    sent = [{"type": "namespace", "name": namespace, "description": "", "tools": tools}] if namespace else tools
    shown = [function_name(namespace, name) for name in names]
    assert [len(name) for name in shown] == [64, 64]
    create: Any = agents.client.responses.create
    for name, short in zip(names, shown, strict=True):
        asked = [{"role": "user", "content": call(short)}]
        (called,) = create(model="echo", input=asked, tools=sent).output
        assert (called.name, called.to_dict().get("namespace")) == (name, namespace)
        result = {"type": "function_call_output", "call_id": called.call_id, "output": "done"}
        assert create(model="echo", input=[*asked, called.to_dict(), result], tools=sent).output_text == "done"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_tool_with_a_long_name_keeps_it_in_every_dialect(agents: Served, streamed: bool) -> None:
    names = ["t" * 70 + end for end in "ab"]
    schema = {"type": "object", "properties": {}}
    functions = [{"name": name, "parameters": schema} for name in names]
    tools = [{"type": "function", "function": function} for function in functions]
    for name in names:
        question: Any = {"role": "user", "content": call(short_name(name))}
        chat = {"model": "echo", "stream": streamed, "messages": [question]}
        chosen = {"type": "function", "function": {"name": name}}
        choice = chat_choice(agents, chat | {"tools": tools, "tool_choice": chosen})
        (called,) = choice["tool_calls"]
        assert called["function"]["name"] == name
        result = {"role": "tool", "tool_call_id": called["id"], "content": "done"}
        further = [question, {"role": "assistant", "content": None, "tool_calls": [called]}, result]
        assert chat_choice(agents, chat | {"tools": tools, "messages": further})["content"] == "done"
        assert chat_choice(agents, chat | {"functions": functions})["function_call"]["name"] == name

        client = anthropic.Anthropic(base_url=agents.root, api_key="none", max_retries=0)
        offered: Any = [{"name": name, "input_schema": schema} for name in names]
        asked: Any = {"model": "echo", "max_tokens": 500, "messages": [question], "tools": offered}
        use = said_to(client, asked | {"tool_choice": {"type": "tool", "name": name}}, streamed)
        assert (use.type, use.name) == ("tool_use", name)
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": "done"}]
        spoken = [question, {"role": "assistant", "content": [use.to_dict()]}, {"role": "user", "content": results}]
        assert said_to(client, asked | {"messages": spoken}, streamed).text == "done"

        reply = httpx.post(f"{agents.root}/api/chat", json=chat | {"tools": tools}, timeout=60)
        assert reply.status_code == 200, reply.text
        lines = [json.loads(line)["message"] for line in reply.text.splitlines()]
        (told,) = [one for line in lines for one in line.get("tool_calls", ())]
        assert told["function"]["name"] == name
        further = [question, {"role": "assistant", "tool_calls": [told]}, {"role": "tool", "content": "done"}]
        reply = httpx.post(f"{agents.root}/api/chat", json=chat | {"tools": tools, "messages": further}, timeout=60)
        assert "".join(json.loads(line)["message"]["content"] for line in reply.text.splitlines()) == "done"


def chat_choice(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    """What is said in the one choice of a chat completion, put together where it is streamed."""
    reply = httpx.post(f"{served.root}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    if not body["stream"]:
        message: dict[str, Any] = reply.json()["choices"][0]["message"]
        return message
    whole: dict[str, Any] = {"content": ""}
    for line in reply.text.splitlines():
        if line.startswith("data: {"):
            delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
            whole["content"] += delta.get("content") or ""
            if "function_call" in delta:
                whole.setdefault("function_call", delta["function_call"])
            for one in delta.get("tool_calls", ()):
                first = whole.setdefault("tool_calls", [one])[0]
                if first is not one:
                    first["function"]["arguments"] += one["function"]["arguments"]
    return whole


def said_to(client: anthropic.Anthropic, asked: dict[str, Any], streamed: bool) -> Any:
    """The last block of a message."""
    if not streamed:
        return client.messages.create(**asked).content[-1]
    with client.messages.stream(**asked) as stream:
        return stream.get_final_message().content[-1]


def test_a_chosen_custom_tool_or_one_of_a_namespace_is_the_one_that_is_shown(agents: Served) -> None:
    asked: Any = {"model": "echo", "input": call("crew__close"), "tools": [NAMESPACE, CUSTOM]}
    create: Any = agents.client.responses.create
    assert create(**asked, tool_choice={"type": "function", "name": "close"}).output[0].type == "function_call"
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "order"}]}
    assert create(**asked, tool_choice=allowed).status == "completed"
    with pytest.raises(openai.BadRequestError, match="'x'; 'tools' has: crew__close, crew__order, apply_patch"):
        create(**asked, tool_choice={"type": "custom", "name": "x"})


def test_claude_codes_turn_is_a_call_its_result_and_an_answer(agents: Served) -> None:
    client = anthropic.Anthropic(base_url=agents.root, api_key="none", max_retries=0)
    tools: Any = [{"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}]
    said: list[Any] = [
        {"role": "user", "content": f"run it {call('Bash', command='ls')}"},
        {"role": "system", "content": "Today is Friday."},
    ]
    first = client.messages.create(model="echo", max_tokens=500, messages=said, tools=tools)
    text, use = first.content
    assert (text.type, use.type, first.stop_reason) == ("text", "tool_use", "tool_use")
    assert (use.name, use.input) == ("Bash", {"command": "ls"})  # type: ignore[union-attr]
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "a.txt"}  # type: ignore[union-attr]
    said += [first.to_param(), {"role": "user", "content": [result]}]
    last = client.messages.create(model="echo", max_tokens=500, messages=said, tools=tools)
    assert [(block.type, block.text) for block in last.content] == [("text", "a.txt")]  # type: ignore[union-attr]
    counted = client.messages.count_tokens(model="echo", messages=said, tools=tools)
    assert counted.input_tokens == len("a.txt")


def test_a_chat_calls_the_tool_that_its_last_message_names(agents: Served) -> None:
    tools: Any = [{"type": "function", "function": {"name": "bash"}}]
    said: Any = [{"role": "user", "content": call("bash", command="ls")}]
    create = agents.client.chat.completions.create
    (choice,) = create(model="echo", messages=said, tools=tools).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert (choice.message.tool_calls[0].function.arguments) == '{"command": "ls"}'  # type: ignore[union-attr]
    assert create(model="echo", messages=said).choices[0].message.content == said[0]["content"]
