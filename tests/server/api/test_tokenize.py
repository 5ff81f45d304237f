"""/tokenize, /detokenize and /v1/rerank."""

from typing import Any

import httpx
import pytest

from tests.serving import Served

FRANCE: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def post(house: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(house.root + path, json={"model": "pocket"} | body, timeout=60)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_text_there_and_back(house: Served, reference: Any, prefix: str) -> None:
    text = "The capital of France is Paris. 🦊"
    tokenized = post(house, f"{prefix}/tokenize", prompt=text).json()
    assert tokenized == {"tokens": reference.encode(text), "count": len(reference.encode(text)), "max_model_len": 4096}
    assert post(house, f"{prefix}/detokenize", tokens=tokenized["tokens"]).json() == {"prompt": text}


def test_messages_count_as_in_an_answer_to_them(house: Served) -> None:
    counted = post(house, "/tokenize", messages=FRANCE, add_generation_prompt=True).json()
    reply = house.client.chat.completions.create(model="pocket", messages=FRANCE, max_tokens=1)
    assert counted["count"] == len(counted["tokens"]) == reply.usage.prompt_tokens  # type: ignore[union-attr]
    thinking = post(house, "/tokenize", messages=FRANCE, chat_template_kwargs={"enable_thinking": True}).json()
    assert thinking["count"] != counted["count"]


def test_special_tokens_may_be_left_out(house: Served, reference: Any) -> None:
    tokenized = post(house, "/tokenize", prompt="hello", add_special_tokens=False).json()
    assert tokenized["tokens"] == reference.encode("hello")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": FRANCE}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": FRANCE, "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"prompt": "a", "colour": 1}, "colour"),
        ("/detokenize", {"tokens": [99_999_999]}, "tokens"),
        ("/detokenize", {"tokens": []}, "tokens"),
        ("/detokenize", {}, "tokens"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [""]}, "documents"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "model": "echo"}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(house: Served, path: str, body: dict[str, Any], param: str) -> None:
    reply = post(house, path, **body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_the_nearest_document_comes_first(house: Served) -> None:
    documents = ["Count from 1 to 20", {"text": "What is the capital of Norway?"}, "Repeat: lemon river stone"]
    ranking = post(house, "/v1/rerank", query="What is the capital of France?", documents=documents).json()
    results = ranking["results"]
    assert results[0]["index"] == 1
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert -1.001 <= scores[-1] < scores[0] <= 1.001
    assert all("document" not in result for result in results)
    assert ranking["usage"]["total_tokens"] > 10
    first = post(house, "/v1/rerank", query="Norway", documents=documents, top_n=1, return_documents=True).json()
    assert len(first["results"]) == 1
    assert set(first["results"][0]["document"]) == {"text"}
    same = post(house, "/v1/rerank", query="Count from 1 to 20", documents=documents).json()["results"][0]
    assert (same["index"], same["relevance_score"]) == (0, pytest.approx(1, abs=1e-3))
