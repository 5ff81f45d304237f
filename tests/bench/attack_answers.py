"""Attacks that show in what is answered. Not here: arguments too deep for the readers of calls (A25), which only a
model can write."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.bench.attack_lab import (
    CHAT,
    COMPLETIONS,
    ECHO,
    FRANCE,
    RESPONSES,
    WATCH_SECONDS,
    Lab,
    Target,
    address,
    answers,
    ask,
    chat,
    ended,
    get,
    held_to,
    record,
    tool,
    union,
)
from tests.serving import Served, free_port

# --- who gets in ---


@answers("A1", "config error; key b: 200")
def empty_key(lab: Lab) -> tuple[str, bool]:
    """No key and a wrong one where `api_keys` is ['']; key b where the variable is 'a, b'."""
    got = []
    with contextlib.suppress(AssertionError), lab.serve(ECHO, api_keys=[""]) as served:
        got = [get(served, "/v1/models", authorization=key).status_code for key in ("", "Bearer zzz")]
    with lab.serve(ECHO, environment={"ENGINEHOUSE_API_KEYS": "a, b"}) as served:
        second = get(served, "/v1/models", authorization="Bearer b").status_code
    return f"{got or 'config error'}; key b: {second}", set(got) <= {401} and second == 200


@answers("A2", "each 200, and nothing has run")
def working_directory(lab: Lab) -> tuple[str, bool]:
    """Chat with a server that was started in a folder where a jinja2.py, or a types.py, lies."""
    got = {name: started_beside(lab, name) for name in ("jinja2.py", "types.py")}
    return listed(got), set(got.values()) == {"200"}


def started_beside(lab: Lab, name: str) -> str:
    folder, port = Path(tempfile.mkdtemp(dir=lab.folder)), free_port()
    (folder / name).write_text("open('RAN', 'w')\n")
    settings = {"server": {"port": port}, "cache_dir": str(folder / "cache"), "models": ECHO}
    (folder / "enginehouse.yaml").write_text(json.dumps(settings))
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("enginehouse")), "serve"],  # `python -m` itself would look in the folder
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{Path.cwd() / 'src'}:{Path.cwd()}"},
    )
    served, status = Served(process, port, folder / "cache"), "not started"
    with ended(served), contextlib.suppress(AssertionError):
        served.wait_for("Application startup complete")
        status = str(ask(served, chat(model="echo")).status_code)
    return status + ", it ran" * (folder / "RAN").exists()


@answers("A3", "foreign: 403; localhost: 200")
def foreign_host(lab: Lab) -> tuple[str, bool]:
    """GET /v1/models with a foreign Host, to a loopback server without keys."""
    with lab.serve(ECHO) as served:
        hosts = {"foreign": "evil.example", "localhost": f"localhost:{address(served)[1]}"}
        got = {name: get(served, "/v1/models", host=host).status_code for name, host in hosts.items()}
    return listed(got), list(got.values()) == [403, 200]


@answers("A4-idle", f"0 of 40 open after {WATCH_SECONDS} s")
def idle_connections(lab: Lab) -> tuple[str, bool]:
    """40 connections that say nothing."""
    with lab.serve(ECHO) as served, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address(served))) for _ in range(40)]
        until, left = time.monotonic() + WATCH_SECONDS, 0
        for connection in idle:
            connection.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection.recv(100)
            except TimeoutError:
                left += 1
    return f"{left} of 40 open", left == 0


@answers("A5", "404; text of A")
def foreign_responses(lab: Lab) -> tuple[str, bool]:
    """Key B asks for A's response by its id, and stores an item under an id of A's."""

    def store(served: Served, key: str, item: dict[str, Any]) -> str:
        body = {"model": "echo", "input": [item, {"role": "user", "content": "go on"}]}
        return str(ask(served, body, RESPONSES, authorization=key).json()["id"])

    a, b = "Bearer a", "Bearer b"
    with lab.serve(ECHO, api_keys=["a", "b"]) as served:
        mine = {"role": "user", "id": "msg_mine"}
        first = store(served, a, mine | {"content": "text of A"})
        read = get(served, f"{RESPONSES}/{first}", authorization=b).status_code
        store(served, b, mine | {"content": "text of B"})
        second = store(served, a, {"type": "item_reference", "id": "msg_mine"})
        items = get(served, f"{RESPONSES}/{second}/input_items", authorization=a).text
    text = next((text for text in ("text of A", "text of B") if text in items), "neither")
    return f"{read}; {text}", (read, text) == (404, "text of A")


# --- places and lives ---


@answers("A15", f"200 within {2 * WATCH_SECONDS} s")
def unread_streams(lab: Lab) -> tuple[str, bool]:
    """Three streams of 5 MiB that nobody reads, where three may be under way; then chat once a second."""
    with lab.serve({"pocket": lab.pocket(slots=2)}, max_queue=1) as served, contextlib.ExitStack() as stack:
        ask(served, chat())
        for _ in range(3):
            stack.enter_context(unread_stream(served))
        began, got = time.monotonic(), 0
        while got != 200 and time.monotonic() < began + 2 * WATCH_SECONDS:
            time.sleep(1)
            got = ask(served, chat()).status_code
    return f"{got} after {time.monotonic() - began:.0f} s", got == 200


@answers("A15-open", f"closed within {2 * WATCH_SECONDS} s")
def open_connection(lab: Lab) -> tuple[str, bool]:
    """One such stream: when its connection is closed."""
    with lab.serve({"pocket": lab.pocket(slots=2)}) as served:
        ask(served, chat())
        began, closed = time.monotonic(), False
        with unread_stream(served) as unread:
            while not closed and time.monotonic() < began + 2 * WATCH_SECONDS:
                time.sleep(1)
                closed = not is_connected(served, unread.getsockname()[1])
    return f"{'closed' if closed else 'open'} after {time.monotonic() - began:.0f} s", closed


def is_connected(served: Served, port: int) -> bool:
    connections = psutil.Process(served.process.pid).net_connections("tcp")
    return any(connection.raddr and connection.raddr.port == port for connection in connections)


def unread_stream(served: Served) -> socket.socket:
    fields: dict[str, Any] = {"stream": True, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    body = json.dumps(chat("Tell me a story about a fox.", max_tokens=3500, **fields)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(address(served))
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@contextmanager
def silent_hub() -> Iterator[dict[str, str]]:
    """The environment of a hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as hub:
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "NO_PROXY": "127.0.0.1"}


FAR = {"far": {"source": "nobody/nothing", "runtime": "llamacpp"}}


def fetches(served: Served) -> int:
    return sum("optimize.build" in " ".join(child.cmdline()) for child in served.children())


@answers("A16", "503 within 10 s; 1 fetches")
def left_while_fetching(lab: Lab) -> tuple[str, bool]:
    """Four clients that leave a model of a silent hub after 1.5 s; then one that stays, with load_timeout 3 s."""
    with silent_hub() as environment, lab.serve(FAR, environment=environment, load_timeout="3s") as served:
        target = Target(served)
        for _ in range(4):
            target.send(CHAT, chat(model="far"), 1.5)
        begun = fetches(served)
        status = target.send(CHAT, chat(model="far"), 10)
    return f"{status}; {begun} fetches", status == "503" and begun <= 1


@answers("A17", "200; 0 fetches")
def explain(lab: Lab) -> tuple[str, bool]:
    """GET /v1/models/{id}/explain of a model that a silent hub has."""
    with silent_hub() as environment, lab.serve(FAR, environment=environment) as served:
        status = Target(served).send("/v1/models/far/explain", seconds=5)
        begun = fetches(served)
    return f"{status}; {begun} fetches", (status, begun) == ("200", 0)


@answers("A18", "200")
def failure_in_header(lab: Lab) -> tuple[str, bool]:
    """A request that kills the engine of a model named 日本, then another."""
    model = {"source": "builtin:echo", "runtime": "echo", "options": {"echo": {"fails_on": "BOOM"}}}
    with lab.serve({"日本": model}) as served:
        ask(served, chat("BOOM", "日本"))
        status = ask(served, chat("hi", "日本")).status_code
    return str(status), status == 200


@answers("A19", "200; 200")
def relative_sources(lab: Lab) -> tuple[str, bool]:
    """Models ./mine and models/mine that lie beside the config, of a server that was started elsewhere."""
    from tests.conftest import POCKET

    models = {name: lab.pocket() | {"source": name} for name in ("./mine", "models/mine")}
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    with lab.serve(models, files=dict.fromkeys(models, POCKET), environment=environment) as served:
        got = [ask(served, chat(model=name, max_tokens=1)).status_code for name in models]
    return "; ".join(map(str, got)), got == [200, 200]


@answers("A21", "stream: an error event; plain: 503 application/json")
def ended_server(lab: Lab) -> tuple[str, bool]:
    """SIGTERM while a stream and a plain request run."""
    long = chat("Tell me a story about a fox.", max_tokens=4000, ignore_eos=True)
    with lab.serve({"pocket": lab.pocket()}) as served, ThreadPoolExecutor(2) as threads:
        ask(served, chat())
        ways = {"stream": threads.submit(how_it_ends, served, long | {"stream": True})}
        ways["plain"] = threads.submit(how_it_ends, served, long)
        time.sleep(1)
        served.process.terminate()
        got = {name: way.result() for name, way in ways.items()}
    return listed(got), list(got.values()) == ["an error event", "503 application/json"]


def how_it_ends(served: Served, body: dict[str, Any]) -> str:
    try:
        reply = ask(served, body)
    except httpx.TransportError:
        return "cut off"
    if not body.get("stream"):
        return f"{reply.status_code} {reply.headers.get('content-type')}"
    return "an error event" if 'data: {"error"' in reply.text else "ended"


# --- what the API says ---


def listed(got: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in got.items())


def statuses(served: Served, bodies: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {name: ask(served, body).status_code for name, body in bodies.items()}


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def called(call: dict[str, Any], **result: str) -> list[dict[str, Any]]:
    """A conversation that ends with a tool's result."""
    user, assistant = {"role": "user", "content": FRANCE}, {"role": "assistant", "tool_calls": [call]}
    return [user, assistant, {"role": "tool", "content": "b"} | result]


@answers("A22", 'each 400; json_object: 400 or {"answer":42}')
def dropped_fields(lab: Lab) -> tuple[str, bool]:
    """Unknown fields at depth, and a schema beside json_object."""
    bodies = {
        "text.json_schema": chat(response_format={"type": "text", "json_schema": {}}),
        "function.strictt": chat(tools=[tool(strictt=True)]),
        "function.params": chat(tools=[tool(params={})]),
        "tool.x": chat(tools=[tool() | {"x": 1}]),
        "tool_choice.x": chat(tools=[tool()], tool_choice=tool(x=1)),
        "call.x": chat(called(CALL | {"x": 1}, tool_call_id="a")),
    }
    schema = record(answer={"const": 42})
    with lab.serve({"pocket": lab.pocket()}) as served:
        got: dict[str, Any] = dict(statuses(served, bodies))
        right = set(got.values()) == {400}
        reply = ask(served, chat(response_format={"type": "json_object", "schema": schema}))
        got["json_object"] = reply.status_code
        if reply.status_code == 200:
            got["json_object"] = reply.json()["choices"][0]["message"]["content"].replace(" ", "")[:40]
    return listed(got), right and got["json_object"] in (400, '{"answer":42}')


@answers("A23", "each the same")
def tokens_of_content(lab: Lab) -> tuple[str, bool]:
    """Log-probabilities of answers that stop at a string, think, or call a tool: the content, and its tokens."""
    weather = tool("get_weather", parameters=record(city={"type": "string"}))
    bodies = {
        "stop": chat(stop="France"),
        "thought": chat("What is 7 + 5?", chat_template_kwargs={"enable_thinking": True}),
        "call": chat("What is the weather in Oslo?", tools=[weather]),
    }
    got = {}
    with lab.serve({"pocket": lab.pocket()}) as served:
        for name, body in bodies.items():
            choice = ask(served, body | {"logprobs": True}).json()["choices"][0]
            scored = (choice["logprobs"] or {}).get("content") or []
            content, tokens = choice["message"]["content"] or "", "".join(one["token"] for one in scored)
            got[name] = "the same" if tokens == content else f"{content!r}, {tokens[:30]!r}"
    return listed(got), set(got.values()) == {"the same"}


@answers("A24", "each 400 or 200")
def hard_constraints(lab: Lab) -> tuple[str, bool]:
    """Schemas too hard to follow: of itself, of a multiple far away, of one of 5,000 objects, of a pattern."""
    multiple = {"type": "integer", "multipleOf": 999983, "minimum": 123456789, "maximum": 98765432109876}
    pattern = {"type": "string", "pattern": "^(([ab]{1,999}|[ac]{1,500})c){1,999}$"}
    forms: dict[str, Any] = {"$ref": {"$ref": "#"}, "multipleOf": multiple, "anyOf": union(5_000), "pattern": pattern}
    with lab.serve({"pocket": lab.pocket()}) as served:
        got = statuses(served, {name: held_to(form) for name, form in forms.items()})
    return listed(got), set(got.values()) <= {200, 400}


@answers("A25", "200; 400; 400; 200; 200; 400; 401")
def smaller_ones(lab: Lab) -> tuple[str, bool]:
    """An empty last answer, results of no call, a refusal sent back, a deep tool, an id too large, /schema."""
    user: dict[str, Any] = {"role": "user", "content": FRANCE}
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(130):
        deep = {"type": "object", "properties": {"a": deep}}
    bodies = {
        "empty": chat([user, user | {"role": "assistant", "content": ""}]),
        "no id": chat(called(CALL)),
        "other id": chat(called(CALL, tool_call_id="x")),
        "refusal": chat([user, {"role": "assistant", "content": None, "refusal": "no"}, user]),
        "deep": chat(tools=[tool(parameters=deep)]),
    }
    with lab.serve({"pocket": lab.pocket()} | ECHO) as served:
        got = statuses(served, bodies)
        got["token id"] = ask(served, {"model": "echo", "prompt": [300]}, COMPLETIONS).status_code
    with lab.serve(ECHO, api_keys=["a"]) as served:
        got["/schema"] = get(served, "/schema/openapi.json").status_code
    return listed(got), list(got.values()) == [200, 400, 400, 200, 200, 400, 401]
