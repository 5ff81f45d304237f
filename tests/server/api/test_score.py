"""How near texts are to one another, in the shapes of vLLM and Cohere."""

from typing import Any

import httpx
import pytest

from tests.serving import Served

QUERY, NEAR, FAR = "the capital of France", "the capital of Spain", "12 + 5"


def post(house: Served, path: str = "/v1/score", **fields: Any) -> httpx.Response:
    return httpx.post(house.root + path, json={"model": "pocket"} | fields, timeout=300)


def scores(house: Served, first: Any, second: Any) -> list[float]:
    reply = post(house, text_1=first, text_2=second).json()
    assert (reply["object"], reply["model"]) == ("list", "pocket")
    assert [one["index"] for one in reply["data"]] == list(range(len(reply["data"])))
    assert reply["usage"]["prompt_tokens"] > 0
    return [one["score"] for one in reply["data"]]


def test_a_text_is_scored_against_each_of_several(house: Served) -> None:
    same, near, far = scores(house, QUERY, [QUERY, NEAR, FAR])
    assert same == pytest.approx(1, abs=1e-3)
    assert same > near > far
    assert scores(house, QUERY, NEAR) == pytest.approx([near], abs=1e-3)


def test_texts_are_scored_in_pairs(house: Served) -> None:
    assert scores(house, [QUERY, FAR], [QUERY, FAR]) == pytest.approx([1, 1], abs=1e-3)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_is_found_where_clients_look_for_it(house: Served, path: str) -> None:
    reply = post(house, path, query=QUERY, documents=[FAR, NEAR])
    assert [result["index"] for result in reply.json()["results"]] == [1, 0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text_1": ["a", "b"], "text_2": ["a"]}, "text_1"),
        ({"text_1": "", "text_2": "a"}, "text_1"),
        ({"text_1": "a", "text_2": []}, "text_2"),
        ({"text_1": "a", "text_2": ["a"] * 2048}, "text_2"),
        ({"text_1": ["a"] * 1025, "text_2": ["a"] * 1025}, "text_2"),
        ({"text_1": "a", "text_2": "a", "colour": 1}, "colour"),
        ({"text_1": "a", "text_2": "a", "model": "echo"}, "model"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(house: Served, fields: dict[str, Any], param: str) -> None:
    reply = post(house, **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
