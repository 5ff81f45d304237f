"""Ollama's dialect: lines that add up, options that are honoured or refused by name, models as they are."""

import asyncio
import datetime
import json
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings

from enginehouse.runtimes.contract import JSON_OBJECT, NEUTRAL, Chat, Delta, Done, Event, Job, JsonSchema, Text
from enginehouse.runtimes.errors import EngineFailed, Refused
from enginehouse.server.api.ollama import options, protocol
from enginehouse.server.api.ollama.models import count, shown
from enginehouse.server.api.ollama.render import LINES, LineRenderer, as_message, as_response
from enginehouse.server.keepalive import commented, first_of
from enginehouse.server.sse import Framing
from tests.server.api import test_dialects as dialects
from tests.serving import Served, serve

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
SAID = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"model": "echo", "messages": [SAID]}
GREEDY = {"temperature": 0}
CALL = {"function": {"name": "f", "arguments": {"a": 1}}}
LEFT_SECONDS = 10.0


@pytest.fixture(scope="module")
def client(house: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.root, timeout=120) as client:
        yield client


def lines(body: bytes | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


def chat_job(**change: Any) -> Job:
    asked = protocol.read_chat(json.dumps(CHAT | change).encode())
    return protocol.chat_job(asked, options.read(asked.options), "id", "m")


def generate_job(**fields: Any) -> Job:
    asked = protocol.read_generate(json.dumps({"model": "echo", "prompt": "hi"} | fields).encode())
    return protocol.generate_job(asked, options.read(asked.options), "id", "m")


# --- what is answered ---


@pytest.mark.parametrize(("shape", "place"), [(as_message, "message"), (as_response, None)], ids=["chat", "generate"])
def test_the_lines_of_any_answer_add_up_to_the_whole_one(shape: Any, place: str | None) -> None:
    @settings(max_examples=60, deadline=None)
    @given(deltas=dialects.answers, end=dialects.ends | dialects.cuts)
    def add_up(deltas: list[Delta], end: Done) -> None:
        *pieces, last = lines(dialects.streamed(LineRenderer("m", shape, {}), deltas, end))
        whole = dialects.whole(LineRenderer("m", shape, {}), deltas, end)
        inner, given_whole = ([piece[place] for piece in pieces], whole[place]) if place else (pieces, whole)
        text = "content" if place else "response"
        assert "".join(one[text] for one in inner) == given_whole[text]
        assert "".join(one.get("thinking", "") for one in inner) == given_whole.get("thinking", "")
        calls = [call["function"] for one in inner for call in one.get("tool_calls", ())]
        assert calls == [call["function"] for call in given_whole.get("tool_calls", ())]
        assert [score for piece in pieces for score in piece.get("logprobs", ())] == whole.get("logprobs", [])
        assert [piece["done"] for piece in pieces] == [False] * len(pieces)
        assert (last["done"], last["done_reason"]) == (True, whole["done_reason"])
        assert last["eval_count"] == whole["eval_count"] == end.usage.completion_tokens

    add_up()


def test_an_engine_that_breaks_in_the_middle_ends_the_lines_with_an_error() -> None:
    broken = dialects.streamed(LineRenderer("m", as_message, {}), [Delta("one ")], EngineFailed("it broke"))
    assert lines(broken)[-1] == {"error": "it broke"}


def test_while_a_model_is_made_ready_pieces_of_nothing_keep_the_stream_alive() -> None:
    renderer = LineRenderer("m", as_message, {})

    async def events() -> AsyncGenerator[tuple[int, Event], None]:
        yield 0, dialects.PLACED

    async def body(first: Any, events: Any) -> AsyncGenerator[bytes, None]:
        yield b""

    async def received() -> bytes:
        coming = events()
        first = asyncio.ensure_future(first_of(coming))
        framing = Framing(LINES, renderer.silence)
        parts = commented(first, coming, lambda: "convert, 40 %", body, lambda error: b"", framing)
        return b"".join([part async for part in parts])

    kept = lines(asyncio.run(received()))
    assert kept
    assert all((one["message"]["content"], one["done"]) == ("", False) for one in kept)


def test_a_chat_streams_unless_it_is_told_not_to(client: httpx.Client) -> None:
    client.post(
        "/api/pull", json={"model": "echo", "stream": False}
    )  # else headers go out before it is known who answers
    streamed = client.post("/api/chat", json=CHAT)
    assert streamed.headers["content-type"].startswith(LINES)
    assert streamed.headers["x-enginehouse-runtime"] == "echo"
    *pieces, last = lines(streamed.content)
    assert "".join(piece["message"]["content"] for piece in pieces) == "hi"
    whole = client.post("/api/chat", json=CHAT | {"stream": False})
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["message"] == {"role": "assistant", "content": "hi"}
    assert last.keys() == whole.json().keys()


def test_durations_are_of_this_request_and_add_up(client: httpx.Client) -> None:
    began = time.monotonic_ns()
    asked = {"model": "pocket", "messages": FRANCE, "options": GREEDY, "stream": False}
    answer = client.post("/api/chat", json=asked).json()
    took = time.monotonic_ns() - began
    parts = [answer[f"{part}_duration"] for part in ("load", "prompt_eval", "eval")]
    assert all(part > 0 for part in parts)
    assert abs(sum(parts) - answer["total_duration"]) <= 2
    assert answer["total_duration"] <= took
    assert answer["prompt_eval_count"] > 10
    assert answer["eval_count"] > 5


def test_logprobs_come_with_their_alternatives(client: httpx.Client) -> None:
    asked = {"model": "pocket", "messages": FRANCE, "options": GREEDY, "logprobs": True, "top_logprobs": 2}
    scores = [
        score for line in lines(client.post("/api/chat", json=asked).content) for score in line.get("logprobs", ())
    ]
    assert "".join(score["token"] for score in scores) == PARIS
    assert all(len(score["top_logprobs"]) == 2 for score in scores)


def test_raw_text_goes_past_the_chat_template(client: httpx.Client) -> None:
    prompt = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    asked = {"model": "pocket", "prompt": prompt, "raw": True, "stream": False, "options": GREEDY}
    assert PARIS in client.post("/api/generate", json=asked).json()["response"]
    assert generate_job(raw=True).prompt == Text("hi")
    system = generate_job(system="be short").prompt
    assert isinstance(system, Chat)
    assert system.messages == [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]


# --- what is asked ---


def test_options_become_sampling_with_ollamas_own_defaults() -> None:
    plain = chat_job().sampling
    assert (plain.temperature, plain.top_k, plain.top_p, plain.seed, plain.max_tokens) == (0.8, 40, 0.9, None, None)
    sent = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.7, "min_p": 0.1, "seed": 7, "num_predict": 9, "stop": ["x"],
        "repeat_penalty": 1.2, "repeat_last_n": -1, "presence_penalty": 0.3, "frequency_penalty": 0.4,
    }  # fmt: skip
    got = chat_job(options=sent).sampling
    assert (got.temperature, got.top_k, got.top_p, got.min_p, got.seed, got.max_tokens) == (0.5, 3, 0.7, 0.1, 7, 9)
    assert (got.stop, got.repetition_penalty, got.presence_penalty, got.frequency_penalty) == (("x",), 1.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("sent", "field", "value"),
    [
        ({"num_predict": -1}, "max_tokens", None),
        ({"num_predict": -2}, "max_tokens", None),
        ({"num_predict": 0}, "max_tokens", 0),
        ({"seed": -1}, "seed", None),
        ({"seed": 0}, "seed", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"stop": "x"}, "stop", ("x",)),
        ({"repeat_penalty": 1.1, "repeat_last_n": 0}, "repetition_penalty", 1.0),
        ({"repeat_last_n": 64}, "repetition_penalty", 1.0),
        ({"temperature": None}, "temperature", 0.8),
    ],
)
def test_an_option_means_what_it_does_in_ollama(sent: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(chat_job(options=sent).sampling, field) == value


@pytest.mark.parametrize("name", sorted(options.IGNORED))
def test_how_a_model_is_loaded_is_no_business_of_a_request(name: str) -> None:
    assert chat_job(options={name: 1}) == chat_job()


def test_a_format_is_enforced() -> None:
    assert chat_job().sampling.constraint is NEUTRAL.constraint
    assert chat_job(format="json").sampling.constraint == JSON_OBJECT
    assert chat_job(format={"type": "object"}).sampling.constraint == JsonSchema('{"type":"object"}')


@pytest.mark.parametrize(
    ("think", "variables", "effort"),
    [
        (None, {}, ""),
        (True, {"enable_thinking": True, "thinking": True}, ""),
        (False, {"enable_thinking": False, "thinking": False}, ""),
        ("high", {}, "high"),
    ],
)
def test_thinking_is_asked_for_by_a_switch_or_a_level(think: Any, variables: Any, effort: str) -> None:
    prompt = chat_job(think=think).prompt
    assert isinstance(prompt, Chat)
    assert (prompt.template_options, prompt.effort) == (variables, effort)


def test_results_find_their_calls_by_the_name_of_the_tool_or_by_their_order() -> None:
    other = {"function": {"name": "g", "arguments": {}}}

    def ids(*results: dict[str, Any]) -> list[str]:
        called = {"role": "assistant", "content": "", "tool_calls": [CALL, other, CALL]}
        prompt = chat_job(messages=[SAID, called, *({"role": "tool", "content": "1"} | one for one in results)]).prompt
        assert isinstance(prompt, Chat)
        calls = [call["id"] for call in prompt.messages[1]["tool_calls"]]
        return [str(calls.index(message["tool_call_id"])) for message in prompt.messages[2:]]

    assert ids({"tool_name": "g"}, {"tool_name": "f"}, {"tool_name": "f"}) == ["1", "0", "2"]
    assert ids({}, {}, {}) == ["0", "1", "2"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": 1}, "x"),
    ({"options": {"foo": 1}}, "options.foo"),
    ({"options": 1}, "options"),
    ({"options": []}, "options"),
    ({"options": {"temperature": "hot"}}, "options.temperature"),
    ({"options": {"temperature": 3}}, "options.temperature"),
    ({"options": {"top_k": 1.5}}, "options.top_k"),
    ({"options": {"stop": ["x"] * 17}}, "options.stop"),
    ({"options": {"stop": [1]}}, "options.stop[0]"),
    ({"options": {"mirostat": 2}}, "options.mirostat"),
    ({"options": {"typical_p": 0.5}}, "options.typical_p"),
    ({"options": {"num_predict": -3}}, "options.num_predict"),
    ({"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
    ({"format": "xml"}, "format"),
    ({"format": 1}, "format"),
    ({"think": "hard"}, "think"),
    ({"truncate": True}, "truncate"),
    ({"shift": True}, "shift"),
    ({"stream": "yes"}, "stream"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "messages[0].content"),
    ({"messages": [SAID | {"images": ["aaaa"]}]}, "messages[0].images"),
    ({"messages": [SAID | {"role": "bot"}]}, "messages[0].role"),
    ({"messages": [SAID | {"tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "tool", "content": "1", "tool_name": "f"}]}, "messages[0].tool_name"),
    ({"messages": [{"role": "tool", "content": "1", "tool_call_id": "c"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
     "messages[0].tool_calls[0].function.arguments"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "function.name"),
    ({"tools": [{"type": "web", "function": {"name": "a"}}]}, "tools[0].type"),
]  # fmt: skip
REFUSED_OF_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"images": ["aaaa"]}, "images"),
    ({"suffix": "x"}, "suffix"),
    ({"template": "x"}, "template"),
    ({"context": [1, 2]}, "context"),
    ({"raw": True, "system": "x"}, "system"),
    ({"messages": [SAID]}, "messages"),
]


@pytest.mark.parametrize(("change", "field"), REFUSED, ids=[json.dumps(change)[:60] for change, _ in REFUSED])
def test_what_cannot_be_had_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        chat_job(**change)
    assert refused.value.param == field
    assert field.rpartition(".")[2] in refused.value.message


@pytest.mark.parametrize(("fields", "field"), REFUSED_OF_TEXT, ids=[field for _, field in REFUSED_OF_TEXT])
def test_what_cannot_be_had_of_a_text_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        generate_job(**fields)
    assert refused.value.param == field


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("300ms", 0.3), (20, 20), ("20", 20), (0, 0), ("0", 0),
     (-1, None), ("-1", None), ("-1m", None)],
)  # fmt: skip
def test_a_stay_is_a_duration_of_gos_or_seconds(sent: Any, seconds: float | None) -> None:
    assert protocol.seconds_of(sent) == seconds


@pytest.mark.parametrize("sent", ["", "soon", "1e400", "nan", "inf", "5 m", "9" * 400])
def test_a_stay_that_is_none_is_refused(sent: str) -> None:
    with pytest.raises(Refused, match="keep_alive"):
        protocol.seconds_of(sent)


BAD: list[tuple[str, Any, int, str]] = [
    ("/api/chat", {"model": "nobody"}, 404, "model 'nobody' not found; have: pocket"),
    ("/api/show", {"model": "nobody"}, 404, "put others under 'models' in the config"),
    ("/api/pull", {"model": "nobody"}, 404, "put others under 'models' in the config"),
    ("/api/embed", {"model": "nobody", "input": "a"}, 404, "not found"),
    ("/api/chat", {}, 400, "'model'"),
    ("/api/chat", [], 400, "must be a JSON object"),
    ("/api/chat", CHAT | {"options": {"num_ctx": 10_000_000}}, 400, "raise 'context' of the model in the config"),
    ("/api/chat", CHAT | {"keep_alive": "soon"}, 400, "'keep_alive'"),
    ("/api/chat", CHAT | {"options": {"repeat_penalty": 1.1}}, 400, "repetition_penalty"),
    ("/api/embed", {"model": "pocket", "input": ["a", ""]}, 400, "empty text"),
    ("/api/embed", {"model": "pocket", "input": [1]}, 400, "'input[0]'"),
    ("/api/embed", {"model": "pocket", "input": "a", "options": {"num_ctx": 9999}}, 400, "'options.num_ctx' is 9999"),
    ("/api/embed", {"model": "pocket", "input": "a", "dimensions": 10_000}, 400, "'dimensions' is at most"),
    ("/api/embed", {"model": "pocket", "input": "a " * 9000, "truncate": False}, 400, "maximum context length"),
    ("/api/copy", {"source": "pocket", "destination": "b"}, 501, "'aliases'"),
    ("/api/push", {"model": "pocket"}, 501, "config"),
    ("/api/create", {"model": "mine", "from": "pocket"}, 501, "config"),
    ("/api/blobs/sha256:abc", {}, 501, ".gguf"),
    ("/api/nowhere", {}, 404, "there is no POST /api/nowhere here"),
    ("/api/chats", {}, 404, "did you mean /api/chat?"),
    ("/api/tags", {}, 405, "there is no POST /api/tags here"),
]


@pytest.mark.parametrize(("route", "body", "status", "words"), BAD, ids=[f"{r}-{s}-{w[:12]}" for r, _, s, w in BAD])
def test_a_failure_has_ollamas_shape_and_says_what_would_work(
    client: httpx.Client, route: str, body: Any, status: int, words: str
) -> None:
    failed = client.post(route, json=body)
    assert failed.status_code == status, failed.text
    assert failed.json().keys() == {"error"}
    assert words in failed.json()["error"]


@pytest.mark.parametrize("sent", [b"", b"{", b'{"model": "echo"', b"\xff\xfe", b"[" * 100_000])
def test_a_line_that_does_not_parse_is_a_400(client: httpx.Client, sent: bytes) -> None:
    failed = client.post("/api/chat", content=sent)
    assert (failed.status_code, failed.json().keys()) == (400, {"error"})


def test_curl_need_not_say_that_it_sends_json_but_a_page_must(client: httpx.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/api/chat", content=json.dumps(CHAT), headers=form).status_code == 200
    page = form | {"origin": "https://evil.example"}
    assert client.post("/api/chat", content=json.dumps(CHAT), headers=page).status_code == 415


def test_a_client_that_leaves_in_the_middle_frees_its_place(client: httpx.Client) -> None:
    long = {"model": "pocket", "messages": FRANCE, "options": {"num_predict": 4000}}
    with client.stream("POST", "/api/chat", json=long | {"tools": []}) as stream:
        next(stream.iter_lines())
    until = time.monotonic() + LEFT_SECONDS
    while client.get("/v1/models/pocket").json()["status"]["requests"]:
        assert time.monotonic() < until, "a request under way that nobody waits for"


# --- the models ---


@pytest.mark.parametrize(
    ("name", "listed"), [("a", "a:latest"), ("a:1b", "a:1b"), ("b/a", "b/a:latest"), ("x:1/a", "x:1/a:latest")]
)
def test_a_name_without_a_tag_is_the_latest(name: str, listed: str) -> None:
    assert shown(name) == listed


@pytest.mark.parametrize(("parameters", "size"), [(7_615_616_512, "7.6B"), (494_032_768, "494.03M"), (12, "12")])
def test_parameters_are_counted_as_ollama_does(parameters: int, size: str) -> None:
    assert count(parameters) == size


@pytest.mark.parametrize("name", ["pocket", "pocket:latest", "gpt-4o-mini", "gpt-4o-mini:latest"])
def test_a_model_answers_to_its_name_its_aliases_and_latest(client: httpx.Client, name: str) -> None:
    assert client.post("/api/show", json={"model": name}).json()["modelfile"].endswith("FROM builtin:pocket\n")


def test_every_model_of_the_config_is_listed_with_what_is_known(client: httpx.Client) -> None:
    models = {model["name"]: model for model in client.get("/api/tags").json()["models"]}
    assert models.keys() == {f"{name}:latest" for name in ("pocket", "pocket-f32", "pocket-int4", "echo", "agent")}
    assert len({model["digest"] for model in models.values()}) == len(models)
    pocket = models["pocket:latest"]
    assert pocket["size"] > 10_000_000
    assert (pocket["details"]["family"], pocket["details"]["parameter_size"]) == ("qwen3", "5.77M")
    assert models["pocket-f32:latest"]["details"]["quantization_level"] == "F32"
    assert models["echo:latest"]["capabilities"] == ["completion", "tools"]
    shown = client.post("/api/show", json={"name": "pocket"}).json()
    assert shown["capabilities"] == pocket["capabilities"] == ["completion", "tools", "thinking", "embedding"]
    assert shown["model_info"]["qwen3.context_length"] == 4096
    assert "<|im_start|>" in shown["template"]


def test_a_model_that_must_be_fetched_first_is_listed_without_what_is_not_known(tmp_path: Path) -> None:
    models = {"far": {"source": "someone/something"}}
    with serve(tmp_path, models, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}) as served:
        (far,) = httpx.get(f"{served.root}/api/tags", timeout=60).json()["models"]
        pulled = lines(httpx.post(f"{served.root}/api/pull", json={"model": "far"}, timeout=60).content)
        whole = httpx.post(f"{served.root}/api/pull", json={"model": "far", "stream": False}, timeout=60)
    assert (far["size"], far["details"]["family"], far["capabilities"]) == (0, "", ["completion"])
    assert pulled[0] == {"status": "pulling manifest"}
    assert "the hub cannot be reached" in pulled[-1]["error"]
    assert (whole.status_code, whole.json().keys()) == (503, {"error"})


def running(served: Served) -> dict[str, Any]:
    models: Sequence[dict[str, Any]] = httpx.get(f"{served.root}/api/ps").json()["models"]
    return {model["name"]: model for model in models}


def stays(model: dict[str, Any]) -> float:
    """Seconds that it is to stay."""
    until = datetime.datetime.fromisoformat(model["expires_at"])
    return (until - datetime.datetime.now(datetime.UTC)).total_seconds()


def test_a_model_is_loaded_stays_as_long_as_is_asked_and_is_unloaded(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": {"source": "builtin:echo", "keep_alive": "10m"}}) as served:

        def ask(route: str, **fields: Any) -> dict[str, Any]:
            reply = httpx.post(
                f"{served.root}/api/{route}", json={"model": "echo", "stream": False} | fields, timeout=60
            )
            assert reply.status_code == 200, reply.text
            return dict(reply.json())

        assert running(served) == {}
        assert ask("generate", keep_alive=0)["done_reason"] == "unload"
        assert ask("chat", messages=[])["done_reason"] == "load"
        assert 500 < stays(running(served)["echo:latest"]) <= 600
        ask("chat", messages=[SAID], keep_alive="1h")
        assert 3500 < stays(running(served)["echo:latest"]) <= 3600
        ask("generate", prompt="hi", keep_alive=-1)
        assert stays(running(served)["echo:latest"]) > 1e9
        ask("generate", prompt="hi", keep_alive=0)
        served.wait_for("unloading 'echo'")
        assert running(served) == {}
        ask("generate", prompt="hi")
        assert 500 < stays(running(served)["echo:latest"]) <= 600
        assert httpx.post(f"{served.root}/api/pull", json={"model": "echo"}, timeout=60).text.endswith(
            '{"status":"success"}\n'
        )


def test_what_is_beyond_the_context_is_cut_off_a_text_that_is_embedded(client: httpx.Client) -> None:
    long = "the sea " * 6000
    embedded = client.post("/api/embed", json={"model": "pocket", "input": ["the sky", long]}).json()
    alone = client.post("/api/embed", json={"model": "pocket", "input": "the sky"}).json()
    assert alone["prompt_eval_count"] + 4096 == embedded["prompt_eval_count"]
    assert embedded["embeddings"][0] == pytest.approx(alone["embeddings"][0], abs=1e-3)
    assert client.post("/api/embed", json={"model": "pocket", "input": []}).json()["embeddings"] == []


# --- whether somebody is there ---


def test_those_who_look_whether_ollama_is_there_find_it_without_a_key(tmp_path: Path) -> None:
    with serve(tmp_path, {"echo": {"source": "builtin:echo"}}, api_keys=["k"]) as served:
        assert httpx.get(served.root).text == "Ollama is running"
        assert httpx.head(served.root).status_code == 200
        refused = httpx.get(f"{served.root}/api/tags")
        assert (refused.status_code, refused.json().keys()) == (401, {"error"})
        key = {"authorization": "Bearer k"}
        assert httpx.get(f"{served.root}/api/version", headers=key).json()["version"] == "0.33.0"
