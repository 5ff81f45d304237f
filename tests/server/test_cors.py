"""Which pages in a browser may read what is answered: those of server.cors_origins, and no others."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from enginehouse.config.load import BadConfig, load
from tests.serving import Served, serve

ECHO = {"echo": {"source": "builtin:echo"}}
PAGE, OTHER = "https://chat.example", "https://evil.example"
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
WANTED = "authorization, content-type, x-stainless-lang"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("origins")
    with serve(folder, ECHO, api_keys=["k"], cors_origins=[PAGE, "http://localhost:3000"]) as served:
        yield served


def preflight(root: str, origin: str, path: str = "/v1/chat/completions", method: str = "POST") -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": WANTED}
    return httpx.options(f"{root}{path}", headers=headers)


def granted(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/models", "/api/chat", "/nowhere"])
def test_a_preflight_is_answered_without_a_key(keyed: Served, path: str) -> None:
    answer = preflight(keyed.root, PAGE, path)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == WANTED
    assert "origin" in answer.headers["vary"]


def test_a_page_that_is_allowed_may_read_answers_streams_and_headers(keyed: Served) -> None:
    headers = {"origin": PAGE, "authorization": "Bearer k"}
    for fields in ({}, {"stream": True}):
        answer = httpx.post(f"{keyed.root}/v1/chat/completions", json=CHAT | fields, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert granted(answer) == {"access-control-allow-origin": PAGE, "access-control-expose-headers": "*"}
        assert answer.headers["vary"] == "origin"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 401),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/models", 405),
        ("POST", "/v1/messages", 400),
        ("POST", "/api/chat", 400),
    ],
)
def test_a_page_that_is_allowed_may_read_errors_of_every_kind(
    keyed: Served, method: str, path: str, status: int
) -> None:
    headers = {"origin": PAGE} | ({} if status == 401 else {"x-api-key": "k"})
    answer = httpx.request(method, f"{keyed.root}{path}", headers=headers, json={})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)


@pytest.mark.parametrize(
    "origin", [OTHER, f"{PAGE}.evil.example", "https://chatXexample", "http://chat.example", "null", ""]
)
def test_a_page_of_another_origin_gets_none(keyed: Served, origin: str) -> None:
    assert granted(preflight(keyed.root, origin)) == {}
    answer = httpx.get(f"{keyed.root}/v1/models", headers={"origin": origin, "x-api-key": "k"})
    assert (answer.status_code, granted(answer), answer.headers["vary"]) == (200, {}, "origin")


def test_by_default_no_page_gets_any(house: Served) -> None:
    assert granted(preflight(house.root, "http://localhost:3000")) == {}
    answer = httpx.get(f"{house.root}/v1/models", headers={"origin": "http://localhost:3000"})
    assert (granted(answer), answer.headers.get("vary")) == ({}, None)


def test_a_star_admits_every_page(tmp_path: Path) -> None:
    with serve(tmp_path, ECHO, cors_origins=["*"]) as served:
        assert preflight(served.root, OTHER).headers["access-control-allow-origin"] == "*"
        answer = httpx.get(f"{served.root}/v1/models", headers={"origin": OTHER})
    assert (answer.headers["access-control-allow-origin"], answer.headers.get("vary")) == ("*", None)


@pytest.mark.parametrize("origin", ["https://*.example", "https://chat.example/", "chat.example", "https://", "a b"])
def test_what_no_browser_sends_as_an_origin_is_an_error_of_the_config(tmp_path: Path, origin: str) -> None:
    file = tmp_path / "enginehouse.yaml"
    file.write_text(f"server: {{cors_origins: ['{origin}']}}\nmodels: {{echo: {{source: 'builtin:echo'}}}}\n")
    with pytest.raises(BadConfig, match="an origin such as https"):
        load(str(file), {})
