"""/v1/files and /v1/batches through the openai package: what is answered, refused, kept and for whom."""

import http.client
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from enginehouse.server import limits
from tests.batch_files import SECONDS, ended, hand_in, jsonl, line, metric, rows, said, with_answers
from tests.serving import Served, serve

WORDS = "one two three four five six seven eight nine ten"
MODELS: dict[str, Any] = {
    "echo": {"source": "builtin:echo", "aliases": ["gpt-4o-mini"]},
    "slow": {"source": "builtin:echo", "slots": 3, "options": {"echo": {"decode_rate": 40}}},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    keys = {
        "limited": {"key": "limited", "models": ["echo"]},
        "metered": {"key": "metered", "requests_per_minute": 60, "concurrent": 1},
    }
    folder = tmp_path_factory.mktemp("house")
    with serve(folder, MODELS, api_keys=["mine", "yours"], keys=keys) as running:
        yield running


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return of("mine", served)


def of(key: str, served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.root}/v1", api_key=key, max_retries=0, timeout=SECONDS)


def test_every_line_is_answered_once_and_under_its_own_id(client: openai.OpenAI) -> None:
    texts = {f"line {number}": f"text {number} ü" for number in range(100)}
    content = b"\n" + jsonl(line(id, text) for id, text in texts.items())
    begun = hand_in(client, content, metadata={"for": "a test"})
    assert (begun.status, begun.metadata, begun.object) == ("validating", {"for": "a test"}, "batch")
    batch = ended(client, begun.id)
    assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
    assert batch.request_counts and batch.request_counts.model_dump() == {"completed": 100, "failed": 0, "total": 100}
    assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
    answers = rows(client, batch.output_file_id)
    assert {row["custom_id"]: said(row) for row in answers} == texts
    assert {row["response"]["status_code"] for row in answers} == {200}
    assert all(row["id"].startswith("batch_req_") and row["error"] is None for row in answers)
    assert batch.output_file_id
    output = client.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.bytes) == ("batch_output", len(client.files.content(output.id).content))


@pytest.mark.parametrize(
    ("url", "body", "answer"),
    [
        ("/v1/completions", {"model": "echo", "prompt": "hello"}, lambda body: body["choices"][0]["text"] == "hello"),
        ("/v1/responses", {"model": "echo", "input": "hello"}, lambda body: body["status"] == "completed"),
        ("/v1/embeddings", {"model": "pocket", "input": "hello"}, lambda body: len(body["data"][0]["embedding"]) > 1),
    ],
)
def test_the_other_endpoints_answer_too(house: Served, url: str, body: dict[str, Any], answer: Any) -> None:
    client = house.client
    lines = [{"custom_id": str(number), "method": "POST", "url": url, "body": body} for number in range(5)]
    batch = ended(client, hand_in(client, jsonl(lines), url).id)
    assert batch.status == "completed"
    answers = rows(client, batch.output_file_id)
    assert len(answers) == 5
    assert all(answer(row["response"]["body"]) for row in answers)


def test_a_line_that_is_refused_is_among_the_errors(client: openai.OpenAI) -> None:
    lines = [line("good", "a"), line("bad", "b", temperature=99), line("worse", "c", colour="red")]
    batch = ended(client, hand_in(client, jsonl(lines)).id)
    assert batch.status == "completed"
    assert batch.request_counts and batch.request_counts.model_dump() == {"completed": 1, "failed": 2, "total": 3}
    errors = {row["custom_id"]: row["response"] for row in rows(client, batch.error_file_id)}
    assert {id: one["status_code"] for id, one in errors.items()} == {"bad": 400, "worse": 400}
    assert errors["worse"]["body"]["error"]["param"] == "colour"


def test_a_file_with_mistakes_is_refused_with_their_lines(client: openai.OpenAI) -> None:
    lines = [
        jsonl([line("a", "fine")]),
        b"{not json\n",
        jsonl([line("a", "again")]),
        jsonl([line("b", "elsewhere", url="/v1/completions")]),
        jsonl([line("c", "nobody", model="gpt-99")]),
        jsonl([line("d", "got") | {"method": "GET"}]),
        jsonl([line("e", "streamed", stream=True)]),
        jsonl([line("f", "another", model="slow")]),
        jsonl([line("g", "an alias", model="gpt-4o-mini")]),
        jsonl([line("h", "more") | {"colour": "red"}]),
    ]
    batch = ended(client, hand_in(client, b"".join(lines)).id)
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.errors and batch.errors.data
    assert [(one.line, one.code) for one in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "invalid_url"),
        (5, "model_not_found"),
        (6, "invalid_method"),
        (7, "unsupported_parameter"),
        (8, "mismatched_model"),
        (10, "invalid_request"),
    ]


def test_a_file_of_empty_lines_is_refused(client: openai.OpenAI) -> None:
    batch = ended(client, hand_in(client, b"\n\n").id)
    assert batch.errors and batch.errors.data
    assert (batch.status, batch.errors.data[0].code) == ("failed", "empty_file")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "colour": "red"}, "colour"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after"),
    ],
)
def test_a_form_is_refused_by_the_name_of_its_field(served: Served, fields: dict[str, str], param: str) -> None:
    before = len(of("mine", served).files.list().data)
    reply = httpx.post(f"{served.root}/v1/files", headers=MINE, data=fields, files={"file": ("a", b"{}")})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert len(of("mine", served).files.list().data) == before


MINE = {"authorization": "Bearer mine"}


def test_a_form_without_a_file_or_no_form_is_refused(served: Served) -> None:
    url = f"{served.root}/v1/files"
    without = httpx.post(url, headers=MINE, data={"purpose": "batch"}, files={"other": ("a", b"{}")})
    assert (without.status_code, without.json()["error"]["param"]) == (400, "file")
    assert httpx.post(url, headers=MINE, json={"purpose": "batch"}).status_code == 415
    broken = {"content-type": "multipart/form-data; boundary=x"} | MINE
    assert httpx.post(url, headers=broken, content=b"--x\r\nnothing").status_code == 400
    asking = http.client.HTTPConnection(served.root.removeprefix("http://"), timeout=SECONDS)
    asking.putrequest("POST", "/v1/files")
    for name, value in (broken | {"content-length": str(limits.FILE_BYTES + (2 << 20))}).items():
        asking.putheader(name, value)
    asking.endheaders()
    assert asking.getresponse().status == 413
    asking.close()


def test_a_batch_is_refused_by_the_name_of_its_field(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a", jsonl([line("a", "b")])), purpose="batch")
    good: dict[str, Any] = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for bad in (
        {"input_file_id": "file-none"},
        {"endpoint": "/v1/images/generations"},
        {"completion_window": "soon"},
        {"completion_window": "31d"},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(**(good | bad))
        assert refused.value.param == next(iter(bad))
    with pytest.raises(openai.BadRequestError, match="colour"):
        client.batches.create(**good, extra_body={"colour": "red"})


def test_files_and_batches_are_listed_page_by_page(served: Served) -> None:
    client = of("yours", served)
    made = [hand_in(client, jsonl([line("a", "b")])).id for _ in range(5)]
    for id in made:
        ended(client, id)
    assert [one.id for one in client.batches.list(limit=2)] == made[::-1]
    assert client.batches.list(limit=2).has_more
    assert [one.id for one in client.batches.list(after=made[1])] == [made[0]]
    uploaded = [one.id for one in client.files.list(purpose="batch", order="asc", limit=2)]
    assert len(uploaded) == 5
    assert [one.id for one in client.files.list(purpose="batch")] == uploaded[::-1]
    assert len(list(client.files.list(limit=3))) == 10
    for listing in (client.files, client.batches):
        with pytest.raises(openai.BadRequestError, match="'after'"):
            listing.list(after="nothing")


def test_another_key_sees_nothing_of_it(served: Served, client: openai.OpenAI) -> None:
    batch = ended(client, hand_in(client, jsonl([line("a", "b")])).id)
    other = of("limited", served)
    assert batch.output_file_id
    for ask in (
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.files.retrieve(batch.input_file_id),
        lambda: other.files.content(batch.output_file_id),
        lambda: other.files.delete(batch.input_file_id),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    assert not other.files.list().data
    assert not other.batches.list().data
    with pytest.raises(openai.BadRequestError):
        other.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )


def test_a_key_may_batch_no_other_models_than_it_may_ask(served: Served) -> None:
    batch = ended(of("limited", served), hand_in(of("limited", served), jsonl([line("a", "b", model="slow")])).id)
    assert batch.errors and batch.errors.data
    assert (batch.status, batch.errors.data[0].code) == ("failed", "model_not_found")


def test_what_is_kept_can_be_read_by_its_user_alone(served: Served, client: openai.OpenAI) -> None:
    ended(client, hand_in(client, jsonl([line("a", "b")])).id)
    for path in (served.cache / "files", served.cache / "batches-1.sqlite", *(served.cache / "files").iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_what_is_cancelled_keeps_what_it_has(served: Served, client: openai.OpenAI) -> None:
    begun = hand_in(client, jsonl(line(str(number), WORDS, "slow") for number in range(200)))
    with_answers(client, begun.id, 3)
    with pytest.raises(openai.ConflictError, match="cancel it first"):
        client.files.delete(begun.input_file_id)
    assert client.batches.cancel(begun.id).status == "cancelling"
    batch = ended(client, begun.id)
    assert batch.status == "cancelled"
    answers = rows(client, batch.output_file_id)
    assert batch.request_counts and batch.request_counts.completed == len(answers) >= 3
    assert {said(row) for row in answers} == {WORDS}
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.batches.cancel(begun.id)
    while metric(served, "requests_under_way", "slow", "mine"):
        time.sleep(0.05)
    assert client.files.delete(begun.input_file_id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(begun.input_file_id)


def test_when_its_window_is_over_the_rest_is_among_the_errors(client: openai.OpenAI) -> None:
    begun = hand_in(client, jsonl(line(str(number), WORDS, "slow") for number in range(200)), window="4s")
    batch = ended(client, begun.id)
    assert batch.status == "expired"
    answers, errors = rows(client, batch.output_file_id), rows(client, batch.error_file_id)
    assert answers
    assert {row["custom_id"] for row in answers + errors} == {str(number) for number in range(200)}
    assert {row["error"]["code"] for row in errors} == {"batch_expired"}
    counts = batch.request_counts
    assert counts and (counts.completed, counts.failed) == (len(answers), len(errors))


def test_a_chat_finds_a_slot_beside_a_batch(served: Served, client: openai.OpenAI) -> None:
    begun = hand_in(client, jsonl(line(str(number), WORDS, "slow") for number in range(200)))
    with_answers(client, begun.id, 1)
    most = 0.0
    for _ in range(3):
        most = max(most, metric(served, "requests_under_way", "slow", "mine"))
        reply = client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "hi"}])
        assert reply.choices[0].message.content == "hi"
    assert most <= 2  # of three slots
    assert client.batches.retrieve(begun.id).status == "in_progress"
    client.batches.cancel(begun.id)
    ended(client, begun.id)


def test_a_batch_leaves_half_of_a_minute_to_who_has_its_key(served: Served) -> None:
    client = of("metered", served)
    begun = hand_in(client, jsonl(line(str(number), "a") for number in range(40)))
    with_answers(client, begun.id, 20)
    messages: Any = [{"role": "user", "content": "hi"}]
    reply = client.chat.completions.with_raw_response.create(model="echo", messages=messages)
    assert int(reply.headers["x-ratelimit-remaining-requests"]) > 60 // 2 - 10
    assert client.batches.retrieve(begun.id).status == "in_progress"
    assert ended(client, begun.id).status == "completed"


def test_a_file_is_gone_when_its_time_is_over(served: Served, client: openai.OpenAI) -> None:
    content = jsonl([line("a", "b")])
    file = client.files.create(
        file=("a", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    batch = hand_in(client, content, output_expires_after={"anchor": "created_at", "seconds": 7200})
    output = client.files.retrieve(str(ended(client, batch.id).output_file_id))
    assert output.expires_at == output.created_at + 7200
    with sqlite3.connect(served.cache / "batches-1.sqlite") as db:
        db.execute("update files set expires = 1 where id = ?", (file.id,))
    db.close()
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    assert file.id not in [one.id for one in client.files.list()]


def test_two_batches_of_a_model_go_on_together(client: openai.OpenAI) -> None:
    first, second = (hand_in(client, jsonl(line(str(n), WORDS, "slow") for n in range(100))).id for _ in range(2))
    with_answers(client, second, 2)
    assert client.batches.retrieve(first).status == "in_progress"
    for id in (first, second):
        client.batches.cancel(id)
        ended(client, id)


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    """Nor what is made of it."""
    with serve(tmp_path, {"echo": {"source": "builtin:echo", "context": 4_000_000}}) as served:
        small = ended(served.client, hand_in(served.client, jsonl([line("a", "b")])).id)
        assert small.status == "completed"
        process, most = psutil.Process(served.process.pid), 0
        before = process.memory_info().rss
        done = threading.Event()

        def look() -> None:
            nonlocal most
            while not done.wait(0.01):
                most = max(most, process.memory_info().rss)

        looking = threading.Thread(target=look)
        looking.start()
        text = "a" * (1 << 20)
        content = jsonl(line(str(number), text, max_completion_tokens=1) for number in range(130))
        batch = ended(served.client, hand_in(served.client, content).id)
        done.set()
        looking.join()
        assert (batch.status, len(content) > 130 << 20) == ("completed", True)
        assert most - before < 100 << 20
