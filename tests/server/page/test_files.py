"""GET / and what it loads: whom it is given to, and what it may do."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser

from enginehouse.server.page import routes
from tests.serving import Served, serve

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = Path(routes.__file__).parent / "files"


def test_a_browser_gets_the_page_and_others_ollamas_words(house: Served) -> None:
    page, words = httpx.get(house.root, headers=BROWSER), httpx.get(house.root)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Enginehouse</title>" in page.text
    assert words.text == "Ollama is running"
    assert page.headers["vary"] == words.headers["vary"] == "accept"
    assert httpx.head(house.root, headers=BROWSER).headers["content-length"] == str(len(page.content))


def test_the_page_wants_no_key_and_its_data_does(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, api_keys=["k"]) as served:
        assert httpx.get(served.root, headers=BROWSER).status_code == 200
        assert httpx.get(f"{served.root}/page/main.js").status_code == 200
        for path in ("/v1/models", "/v1/host", "/metrics"):
            assert httpx.get(served.root + path).status_code == 401


def test_every_file_has_the_policy_and_is_sent_again_only_when_it_is_another(house: Served) -> None:
    for file in FILES.iterdir():
        answer = httpx.get(f"{house.root}/page/{file.name}")
        assert answer.content == file.read_bytes(), file
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = httpx.get(f"{house.root}/page/{file.name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["routes.py", "..%2froutes.py", "%2e%2e/routes.py", "", "nothing.js"])
def test_nothing_else_is_given(house: Served, name: str) -> None:
    answer = httpx.get(f"{house.root}/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


def test_all_that_it_loads_is_there_and_nothing_comes_from_elsewhere() -> None:
    names = {file.name for file in FILES.iterdir()}
    for file in FILES.iterdir():
        text = file.read_text()
        loaded = re.findall(r'(?:from "\./|(?:src|href)="page/)([^"]+)"', text)
        assert set(loaded) <= names, file
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), file
        if file.name != "client_settings.js":
            assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}, file


def test_the_host_says_what_runs_here_and_why_the_rest_does_not(house: Served) -> None:
    host = httpx.get(f"{house.root}/v1/host").json()
    runtimes = {runtime["name"]: runtime for runtime in host["runtimes"]}
    assert {"llamacpp", "openvino", "onnx", "mlx", "echo"} <= runtimes.keys()
    for runtime in runtimes.values():
        assert bool(runtime["devices"]) == (runtime["unavailable"] is None), runtime
    assert 0 < host["memory_budget_bytes"] <= host["host"]["memory_bytes"]


def test_the_page_takes_no_markup_not_even_of_its_own_scripts(house: Served, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(house.root)
    refused = "() => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name } }"
    assert page.evaluate(refused) == "TypeError"
