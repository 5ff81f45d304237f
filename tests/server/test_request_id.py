"""Every answer has an id, HEAD is as GET without the body, and a wrong path is told the right one."""

import socket
from importlib.metadata import version
from typing import Any

import httpx
import pytest

from tests.serving import Served, rest

ECHO: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5}


def ids(reply: httpx.Response) -> set[str]:
    return {reply.headers["x-request-id"], reply.headers["request-id"]}


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_own_id_comes_back_and_stands_in_the_log(house: Served, stream: bool) -> None:
    headers = {"x-request-id": f"mine-{stream}"}
    body = ECHO | {"stream": stream}
    reply = httpx.post(f"{house.root}/v1/chat/completions", json=body, headers=headers, timeout=60)  # it may be loaded
    assert (reply.status_code, ids(reply)) == (200, {f"mine-{stream}"})
    assert "a on" not in house.wait_for(f"; mine-{stream}")


def test_answers_and_failures_of_every_kind_have_an_id_each_of_its_own(house: Served) -> None:
    replies = [
        httpx.get(f"{house.root}/health"),
        httpx.get(f"{house.root}/nothing"),
        httpx.delete(f"{house.root}/v1/models"),
        httpx.post(f"{house.root}/v1/messages", json=ECHO),
        httpx.post(f"{house.root}/v1/messages", json={}),
        httpx.get(f"{house.root}/health", headers={"a": "b" * 70_000}),
    ]
    assert [reply.status_code for reply in replies] == [200, 404, 405, 200, 400, 431]
    found = set[str]().union(*map(ids, replies))
    assert len(found) == len(replies)
    assert all(id.startswith("req_") for id in found)


@pytest.mark.parametrize("sent", ["", "a b", "a" * 129, '"a"', "é"])
def test_an_id_of_other_letters_is_refused_by_name(house: Served, sent: str) -> None:
    reply = httpx.get(f"{house.root}/health", headers={b"x-request-id": sent.encode("latin-1")})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "x-request-id")
    assert reply.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/v1/models/echo", "/version", "/v1/models/nobody"])
def test_head_is_get_without_the_body(house: Served, path: str) -> None:
    head, get = httpx.head(house.root + path), httpx.get(house.root + path)
    assert (head.status_code, head.headers["content-length"]) == (get.status_code, get.headers["content-length"])
    assert head.content == b""


def test_a_connection_goes_on_after_head(house: Served) -> None:
    host, port = house.root.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = b"HEAD /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        connection.sendall(head + b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        received = rest(connection)
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.count(b'{"status":"ok"}') == 1


def test_head_of_what_is_only_posted_is_refused(house: Served) -> None:
    assert httpx.head(f"{house.root}/v1/embeddings").status_code == 405


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/embeddings", "/v1/embeddings"),
        ("/messages", "/v1/messages"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/model", "/v1/models"),
    ],
)
def test_a_path_that_is_not_there_is_told_the_one_that_is(house: Served, path: str, meant: str) -> None:
    reply = httpx.post(house.root + path, json={})
    assert reply.status_code == 404
    assert reply.json()["error"]["message"] == f"there is no POST {path} here; did you mean {meant}?"


def test_a_path_like_no_other_is_told_nothing(house: Served) -> None:
    error = httpx.get(f"{house.root}/v1/nothing/like/it").json()["error"]
    assert error["message"] == "there is no GET /v1/nothing/like/it here"
    assert "did you mean" not in httpx.get(f"{house.root}/{'a' * 5000}").text


def test_the_version_is_that_of_the_package(house: Served) -> None:
    assert httpx.get(f"{house.root}/version").json() == {"version": version("enginehouse")}
