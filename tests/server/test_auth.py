"""Who may ask: keys, and the names a loopback server answers to."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import COMMAND, Served, serve

ECHO = {"echo": {"source": "builtin:echo"}}
GUARDED = ("/v1/models", "/metrics", "/schema/openapi.json", "/schema")


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("keyed"), ECHO, api_keys=["first", "second"]) as served:
        yield served


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer firs"},
        {"authorization": "Bearer first2"},
        {"authorization": "Basic first"},
        {"x-api-key": ""},
        {"x-api-key": "secon"},
    ],
)
def test_nobody_is_let_in_without_a_key(keyed: Served, path: str, headers: dict[str, str]) -> None:
    refused = httpx.get(keyed.root + path, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("headers", [{"authorization": "Bearer first"}, {"x-api-key": "second"}])
def test_either_header_lets_in(keyed: Served, path: str, headers: dict[str, str]) -> None:
    assert httpx.get(keyed.root + path, headers=headers).status_code == 200


def test_health_is_asked_without_a_key(keyed: Served) -> None:
    assert httpx.get(f"{keyed.root}/health").status_code == 200


def test_a_stored_response_belongs_to_the_key_that_made_it(keyed: Served) -> None:
    def ask(key: str, **fields: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{keyed.root}/v1/responses", json={"model": "echo", **fields}, headers=headers, timeout=60)

    secret = ask("first", input=[{"type": "message", "role": "user", "content": "secret", "id": "msg_mine"}]).json()
    path = f"{keyed.root}/v1/responses/{secret['id']}"
    other, owner = {"x-api-key": "second"}, {"x-api-key": "first"}
    assert httpx.get(path, headers=other).status_code == 404
    assert httpx.get(f"{path}/input_items", headers=other).status_code == 404
    assert ask("second", input="go on", previous_response_id=secret["id"]).status_code == 400
    assert ask("second", input=[{"type": "item_reference", "id": "msg_mine"}]).status_code == 400
    ask("second", input=[{"type": "message", "role": "user", "content": "theirs", "id": "msg_mine"}])
    referred = ask("first", input=[{"type": "item_reference", "id": "msg_mine"}]).json()
    assert referred["output"][0]["content"][0]["text"] == "secret"
    assert httpx.delete(path, headers=other).status_code == 404
    assert httpx.get(path, headers=owner).json()["id"] == secret["id"]
    assert httpx.delete(path, headers=owner).status_code == 200


def test_with_keys_any_host_name_will_do(keyed: Served) -> None:
    headers = {"host": "house.example", "x-api-key": "first"}
    assert httpx.get(f"{keyed.root}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/schema/openapi.json", "/ready"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "localhost.evil.example", "[::2]:1"])
def test_a_page_whose_name_was_turned_to_loopback_is_not_answered(house: Served, path: str, host: str) -> None:
    refused = httpx.get(house.root + path, headers={"host": host})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert host in refused.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:8080"])
def test_a_loopback_name_is_answered(house: Served, host: str) -> None:
    assert httpx.get(f"{house.root}/v1/models", headers={"host": host}).status_code == 200


def test_what_lies_in_the_working_directory_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers, and the children that ask for devices, start where the server does: often a folder of somebody's."""
    for name in ("types", "queue", "jinja2", "msgspec", "numpy"):
        (tmp_path / f"{name}.py").write_text('open("RUN", "a").close(); raise ImportError("not this one")\n')
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "__init__.py").write_text('open("RUN", "a").close()\n')
    monkeypatch.chdir(tmp_path)
    command = (sys.executable, "-P", *COMMAND[1:])  # as the installed command, which does not look here either
    with serve(tmp_path, ECHO, command=command) as served:
        reply = served.client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "one"}])
        explained = httpx.get(f"{served.root}/v1/models/echo/explain", timeout=60).json()
    assert reply.choices[0].message.content == "one"
    assert not [row for row in explained["rejected"] if "asking for its devices failed" in row["reason"]]
    assert not (tmp_path / "RUN").exists()
