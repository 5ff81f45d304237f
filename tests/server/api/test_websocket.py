"""/v1/responses as a WebSocket, through the openai package and, for what it would not send, through websockets."""

import json
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from enginehouse.server import limits
from tests.serving import Served, serve

SECONDS = 60  # that anything here may take
PAGE = "https://chat.example"
MODELS: dict[str, Any] = {
    "echo": {"source": "builtin:echo", "context": 200_000},
    "slow": {"source": "builtin:echo", "slots": 1, "options": {"echo": {"decode_rate": 20}}},
}
KEYS = {
    "few": {"key": "few", "requests_per_minute": 2},
    "one": {"key": "one", "models": ["slow"]},
    "narrow": {"key": "narrow", "concurrent": 1},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("websocket")
    with serve(folder, MODELS, api_keys=["mine"], keys=KEYS, cors_origins=[PAGE]) as served:
        yield served


def opened(served: Served, key: str = "mine", **options: Any) -> AbstractContextManager[ClientConnection]:
    headers = {"authorization": f"Bearer {key}"} | options.pop("headers", {})
    url = served.root.replace("http", "ws") + "/v1/responses"
    connecting: AbstractContextManager[ClientConnection] = connect(
        url, additional_headers=headers, max_size=None, open_timeout=SECONDS, **options
    )
    return connecting


def request(text: str = "hi", model: str = "echo", **fields: Any) -> str:
    return json.dumps({"type": "response.create", "model": model, "input": text, "store": False} | fields)


def events_of(socket: ClientConnection) -> list[dict[str, Any]]:
    """Up to the end of one answer."""
    events: list[dict[str, Any]] = []
    ends = ("response.completed", "response.failed", "response.incomplete", "error")
    while not events or events[-1]["type"] not in ends:
        events.append(json.loads(socket.recv(SECONDS)))
    return events


def answer(socket: ClientConnection, text: str = "hi", **fields: Any) -> dict[str, Any]:
    """The last event of the answer to it."""
    socket.send(request(text, **fields))
    return events_of(socket)[-1]


def text_of(event: dict[str, Any]) -> str:
    return str(event["response"]["output"][0]["content"][0]["text"])


def under_way(served: Served) -> float:
    lines = httpx.get(f"{served.root}/metrics", headers={"authorization": "Bearer mine"}).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("enginehouse_requests_under_way"))


def wait_until_none_is_under_way(served: Served) -> None:
    deadline = time.monotonic() + SECONDS
    while under_way(served):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_openai_package_gets_the_events_of_a_stream(served: Served) -> None:
    client = openai.OpenAI(base_url=f"{served.root}/v1", api_key="mine", max_retries=0)
    by_http = [event.type for event in client.responses.create(model="slow", input="one two", stream=True)]
    with client.responses.connect() as connection:
        connection.response.create(model="slow", input="one two")
        events: list[Any] = [connection.recv() for _ in by_http]
        assert [event.type for event in events] == by_http
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].response.output_text == "one two"
        connection.response.create(model="none", input="x")
        error: Any = connection.recv()
        assert (error.type, error.status, error.error.code) == ("error", 404, "model_not_found")
        connection.response.create(model="slow", input="three", previous_response_id=events[-1].response.id)
        assert connection.recv().type == "response.created"
    assert client.responses.retrieve(events[-1].response.id).output_text == "one two"


def test_what_is_not_stored_is_gone_on_from_on_its_connection_alone(served: Served) -> None:
    tools: Any = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    with opened(served) as socket, opened(served) as other:
        first = answer(socket, call, tools=tools)["response"]
        (item,) = first["output"]
        result = [{"type": "function_call_output", "call_id": item["call_id"], "output": "seen"}]
        second = answer(socket, result, previous_response_id=first["id"])  # type: ignore[arg-type]
        assert text_of(second) == "seen"
        for elsewhere in (other, socket):  # the last one is known, where it was made
            gone = answer(elsewhere, "x", previous_response_id=first["id"])
            assert (gone["status"], gone["error"]["code"]) == (400, "previous_response_not_found")
        third = answer(socket, "x", previous_response_id=second["response"]["id"])
        assert text_of(third) == "x"


def test_what_failed_to_go_on_from_a_response_forgets_it_unless_it_is_stored(served: Served) -> None:
    wrong: Any = [{"type": "function_call_output", "call_id": "call_none", "output": "x"}]
    with opened(served) as socket:
        for store, again in ((False, "error"), (True, "response.completed")):
            id = answer(socket, store=store)["response"]["id"]
            assert answer(socket, wrong, previous_response_id=id)["status"] == 400
            assert answer(socket, previous_response_id=id)["type"] == again


def test_a_chain_that_grows_too_large_is_not_kept(served: Served) -> None:
    large, number = "x" * (limits.LARGEST_BODY_BYTES // 3), 0
    with opened(served) as socket:
        last = answer(socket, "short")["response"]
        while (event := answer(socket, large, previous_response_id=last["id"], truncation="auto"))["type"] != "error":
            last, number = event["response"], number + 1
            assert number < 5
    assert event["error"]["code"] in ("previous_response_not_found", "context_length_exceeded")


@pytest.mark.parametrize(
    ("sent", "status", "part"),
    [
        ("garbage", 400, "not JSON"),
        ("", 400, "not JSON"),
        ("[1, 2]", 400, "must be a JSON object"),
        ('"text"', 400, "must be a JSON object"),
        (b"\x00\xff\x00", 400, "this one was binary"),
        (request().encode(), 400, "this one was binary"),
        ("{}", 400, "'type' must be 'response.create'"),
        ('{"type": "response.steer"}', 400, "'type' must be 'response.create'"),
        (request(stream=False), 400, "'stream'"),
        (request(background=True), 400, "'background'"),
        (request(nonsense=1), 400, "nonsense"),
        (request(model="none"), 404, "none"),
        (json.dumps({"type": "response.create"}), 400, "model"),
        ("[" * 100_000, 400, ""),
        (request("x" * 300_000, nonsense=1), 400, "nonsense"),
    ],
)
def test_what_cannot_be_is_an_error_and_the_connection_goes_on(
    served: Served, sent: str | bytes, status: int, part: str
) -> None:
    with opened(served) as socket:
        socket.send(sent)
        (error,) = events_of(socket)
        assert (error["type"], error["status"]) == ("error", status)
        assert part in error["error"]["message"]
        assert error["error"]["code"]
        assert text_of(answer(socket)) == "hi"


def test_what_says_nothing_here_is_taken(served: Served) -> None:
    with opened(served) as socket:
        assert text_of(answer(socket, stream=True, background=False, stream_options=None)) == "hi"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # a text that is no UTF-8
        (b"\x81\x02hi", 1002),  # without a mask
        (b"\xff" * 100, 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
    ],
)
def test_what_is_no_message_ends_its_connection(served: Served, sent: bytes, code: int) -> None:
    with opened(served) as socket:
        socket.socket.sendall(sent)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(SECONDS)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == code
    with opened(served) as socket:
        assert text_of(answer(socket)) == "hi"
    assert not [line for line in served.log if "Traceback" in line]


@pytest.mark.parametrize("fragments", [1, 20])
def test_a_message_that_is_too_large_ends_its_connection(served: Served, fragments: int) -> None:
    with opened(served) as socket:
        pieces = [b"x" * (limits.LARGEST_BODY_BYTES // fragments)] * fragments
        with pytest.raises(ConnectionClosed) as closed:
            socket.send([*pieces, b"x"], text=True)
            socket.recv(SECONDS)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    with opened(served) as socket:
        assert text_of(answer(socket)) == "hi"


def test_requests_that_come_at_once_are_answered_one_after_the_other(served: Served) -> None:
    with opened(served) as socket:
        for number in range(5):
            socket.send(request(f"number {number}"))
        answers = [events_of(socket) for _ in range(5)]
        assert [text_of(events[-1]) for events in answers] == [f"number {number}" for number in range(5)]
        for events in answers:
            assert len({event["response"]["id"] for event in events if "response" in event}) == 1


def test_more_than_may_wait_end_the_connection_and_what_it_asked(served: Served) -> None:
    with opened(served) as socket:
        for _ in range(limits.SOCKET_WAITING + 2):
            socket.send(request("word " * 1000, model="slow"))
        error = events_of(socket)[-1]
        assert (error["status"], error["error"]["code"]) == (429, "too_many_requests")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(SECONDS)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1008
    wait_until_none_is_under_way(served)


def test_a_client_that_leaves_frees_its_slot(served: Served) -> None:
    for more in (0, 3):  # that wait
        with opened(served) as socket:
            for _ in range(1 + more):
                socket.send(request("word " * 1000, model="slow"))
            assert json.loads(socket.recv(SECONDS))["type"] == "response.created"
            socket.close_socket()
        wait_until_none_is_under_way(served)


def test_a_client_that_reads_nothing_is_ended_and_takes_no_memory(tmp_path: Path) -> None:
    echo = {"echo": {"source": "builtin:echo", "context": 4_000_000, "slots": 1}}
    with serve(tmp_path, echo, send_timeout="1s") as served, socket.socket() as plain:
        host, port = served.root.removeprefix("http://").split(":")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect((host, int(port)))
        with opened(served, sock=plain, max_queue=1) as unread:
            unread.send(request("\1" * 1_500_000))
            served.wait_for("has taken nothing", SECONDS)
            wait_until_none_is_under_way(served)
            with opened(served) as another:
                assert text_of(answer(another)) == "hi"
            plain.shutdown(socket.SHUT_RDWR)
        served.process.terminate()
        served.wait_for("Application shutdown complete", SECONDS)
        assert not [line for line in served.log if "Cancel" in line or "Traceback" in line]


@pytest.mark.parametrize("key", ["", "wrong"])
def test_without_a_key_there_is_no_websocket(served: Served, key: str) -> None:
    with pytest.raises(InvalidStatus) as refused, opened(served, key):
        pass
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"


def test_the_limits_of_a_key_hold_for_each_message(served: Served) -> None:
    with opened(served, "few") as socket:
        statuses = [answer(socket).get("status") for _ in range(3)]
        assert statuses == [None, None, 429]
    with opened(served, "one") as socket:
        refused = answer(socket)
        assert (refused["status"], refused["error"]["code"]) == (403, "model_not_found")
        assert text_of(answer(socket, model="slow")) == "hi"
    with opened(served, "narrow") as socket, opened(served, "narrow") as other:
        socket.send(request("word " * 20, model="slow"))
        assert json.loads(socket.recv(SECONDS))["type"] == "response.created"
        assert answer(other)["status"] == 429
        assert events_of(socket)[-1]["type"] == "response.completed"
        assert text_of(answer(other)) == "hi"


def test_the_urgency_of_the_handshake_holds_for_each_message(served: Served) -> None:
    with opened(served) as socket:
        answer(socket, model="slow")  # it is loaded
    with opened(served, headers={"x-request-timeout": "1.5"}) as socket:
        late = answer(socket, "word " * 100, model="slow")
        assert late["type"] == "response.failed"
        assert "x-request-timeout" in late["response"]["error"]["message"]
    with opened(served, headers={"x-priority": "none"}) as socket:
        assert "x-priority" in answer(socket)["error"]["message"]


def test_pages_of_other_origins_are_refused(served: Served, house: Served) -> None:
    for origin in (PAGE, served.root, None):
        with opened(served, origin=origin) as socket:
            assert text_of(answer(socket)) == "hi"
    for asked, origin in ((served, "https://evil.example"), (served, "null"), (house, PAGE)):
        with pytest.raises(InvalidStatus) as refused, opened(asked, origin=origin):
            pass
        assert refused.value.response.status_code == 403
        assert "origin" in json.loads(refused.value.response.body)["error"]["message"]


def test_a_foreign_host_is_refused(house: Served) -> None:
    url = house.root.replace("http", "ws") + "/v1/responses"
    host, port = house.root.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        pytest.raises(InvalidStatus) as refused,
        connect(url.replace("127.0.0.1", "evil.example"), sock=plain),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_the_handshake_bears_the_id_of_its_request(served: Served) -> None:
    with opened(served, headers={"x-request-id": "of-the-client"}) as socket:
        assert socket.response
        assert socket.response.headers["x-request-id"] == "of-the-client"


def test_what_is_no_upgrade_is_plain_http(served: Served) -> None:
    key, upgrade = {"authorization": "Bearer mine"}, {"connection": "upgrade", "upgrade": "websocket"}
    plain = httpx.get(f"{served.root}/v1/responses", headers=key)
    assert (plain.status_code, plain.headers["upgrade"]) == (426, "websocket")
    assert "WebSocket" in plain.json()["error"]["message"]
    assert httpx.get(f"{served.root}/v1/models", headers=key | upgrade).status_code == 200
    assert httpx.get(f"{served.root}/v1/responses", headers=key | upgrade).status_code in (400, 426)


def server_with(statements: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"{statements}; from enginehouse.server.cli.main import main; main()")


def test_after_an_hour_a_websocket_ends(tmp_path: Path) -> None:
    command = server_with("from enginehouse.server import limits; limits.SOCKET_SECONDS = 1")
    with serve(tmp_path, MODELS, command=command) as served, opened(served) as idle, opened(served) as busy:
        busy.send(request("word " * 10, model="slow"))  # is answered to its end
        assert events_of(busy)[-1]["type"] == "response.completed"
        for socket in (idle, busy):
            (error,) = events_of(socket)
            assert error["error"]["code"] == "websocket_connection_limit_reached"
            with pytest.raises(ConnectionClosed):
                socket.recv(SECONDS)


def test_websockets_that_idle_shut_nobody_out(tmp_path: Path) -> None:
    command = server_with("import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (100, 100))")
    with serve(tmp_path, MODELS, command=command) as served, ExitStack() as held:
        sockets = [held.enter_context(opened(served)) for _ in range(80)]
        with pytest.raises(ConnectionClosed) as closed:
            sockets[0].recv(SECONDS)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1013
        assert text_of(answer(sockets[-1])) == "hi"
        assert httpx.get(f"{served.root}/v1/models", timeout=SECONDS).status_code == 200


def test_a_server_that_stops_ends_them_when_nothing_is_asked_any_more(tmp_path: Path) -> None:
    with serve(tmp_path, MODELS, drain_timeout="forever") as served, opened(served) as idle, opened(served) as busy:
        busy.send(request("word " * 20, model="slow"))
        assert json.loads(busy.recv(SECONDS))["type"] == "response.created"
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(SECONDS)
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1012
        assert text_of(events_of(busy)[-1]) == "word " * 20
        with pytest.raises(ConnectionClosed):
            busy.recv(SECONDS)
        served.process.wait(SECONDS)
        served.wait_for("Application shutdown complete", SECONDS)
        assert not [line for line in served.log if "Traceback" in line or "Cancel" in line]


def test_a_server_that_is_hurried_tells_who_still_waits(tmp_path: Path) -> None:
    with serve(tmp_path, MODELS, drain_timeout="0s") as served, opened(served) as busy:
        busy.send(request("word " * 1000, model="slow"))
        assert json.loads(busy.recv(SECONDS))["type"] == "response.created"
        served.process.send_signal(signal.SIGTERM)
        last = events_of(busy)[-1]
        assert last["type"] == "response.failed"
        assert "shutting down" in last["response"]["error"]["message"]
        served.process.wait(SECONDS)
