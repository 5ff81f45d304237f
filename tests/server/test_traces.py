"""Traces: one from the request to the engine's steps, the client's own going on, and no request that waits for them."""

import itertools
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, Response, get, post
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from enginehouse.runtimes.upstream import request
from tests.serving import Served, hosted, serve

ECHO: dict[str, Any] = {"source": "builtin:echo", "context": 2000}
HELLO = [{"role": "user", "content": "hello"}]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECONDS = 60


class Collector:
    """Takes spans as a collector of OpenTelemetry's does."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._came = threading.Condition()
        self.service = ""

    def app(self) -> Litestar:
        @post("/v1/traces", status_code=200)
        async def take(request: Request[Any, Any, Any]) -> Response[bytes]:
            sent = ExportTraceServiceRequest.FromString(await request.body())
            with self._came:
                for resource in sent.resource_spans:
                    attributes = {one.key: one.value.string_value for one in resource.resource.attributes}
                    self.service = attributes["service.name"]
                    self._spans += [span for scope in resource.scope_spans for span in scope.spans]
                self._came.notify_all()
            return Response(b"", media_type="application/x-protobuf")

        return Litestar([take], logging_config=None)

    def trace(self, id: str, root: str) -> dict[str, Span]:
        """By name, once the span `root` is there, which ends last."""
        with self._came:
            assert self._came.wait_for(lambda: root in self._of(id), SECONDS), self._spans
            return self._of(id)

    def _of(self, id: str) -> dict[str, Span]:
        return {span.name: span for span in self._spans if span.trace_id.hex() == id}


def attributes(span: Span) -> dict[str, Any]:
    kinds = ((one.key, one.value.WhichOneof("value"), one.value) for one in span.attributes)
    return {key: getattr(value, kind) for key, kind, value in kinds}


class Upstream:
    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []

    def app(self) -> Litestar:
        @get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "someone"}]}

        @post("/v1/chat/completions", status_code=200)
        async def chat(request: Request[Any, Any, Any]) -> Response[bytes]:
            self.headers.append(dict(request.headers))
            chunk = {"model": "m", "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
            return Response(
                b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(chunk).encode(), media_type="text/event-stream"
            )

        return Litestar([models, chat], logging_config=None)


@contextmanager
def traced(
    folder: Path, endpoint: str | None, environment: dict[str, str] | None = None
) -> Iterator[tuple[Served, Upstream]]:
    upstream = Upstream()
    with hosted(upstream.app()) as url:
        models = {
            "echo": ECHO,
            "dies": ECHO | {"options": {"echo": {"fails_on": "DIE"}}},
            "remote": {"runtime": "upstream", "upstream": {"base_urls": [f"{url}/v1"], "model": "m"}},
        }
        environment = {"OTEL_BSP_SCHEDULE_DELAY": "50"} | (environment or {})
        with serve(folder, models, environment, otlp_traces_endpoint=endpoint) as served:
            yield served, upstream


@pytest.fixture(scope="module")
def collector() -> Collector:
    return Collector()


@pytest.fixture(scope="module")
def front(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Upstream]]:
    with hosted(collector.app()) as url:
        with traced(tmp_path_factory.mktemp("traces"), f"{url}/v1/traces") as pair:
            yield pair


def ask(served: Served, model: str, trace: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": HELLO, "temperature": 0.5, "max_tokens": 9} | fields
    headers = {"traceparent": f"00-{trace}-{PARENT}-01", "x-request-id": "mine"}
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, headers=headers, timeout=SECONDS)


def test_one_trace_leads_from_the_request_to_prefill_and_decode(
    front: tuple[Served, Upstream], collector: Collector
) -> None:
    served, _ = front
    assert ask(served, "echo", TRACE).status_code == 200
    spans = collector.trace(TRACE, "POST /v1/chat/completions")
    assert collector.service == "enginehouse"
    request, answer = spans["POST /v1/chat/completions"], spans["chat echo"]
    assert (request.parent_span_id.hex(), answer.parent_span_id) == (PARENT, request.span_id)
    children = {name: span for name, span in spans.items() if span.parent_span_id == answer.span_id}
    assert children.keys() == {"queue", "load", "admission", "prefill", "decode"}
    order = [spans[name] for name in ("queue", "load", "admission", "prefill", "decode")]
    for before, after in itertools.pairwise(order):
        assert before.start_time_unix_nano <= before.end_time_unix_nano <= after.start_time_unix_nano + 1000
    load = spans["load"].end_time_unix_nano - spans["load"].start_time_unix_nano
    assert load > 0.5 * (request.end_time_unix_nano - request.start_time_unix_nano)  # nothing was loaded before
    assert attributes(request).items() >= {
        ("http.response.status_code", 200), ("http.route", "/v1/chat/completions"), ("enginehouse.request_id", "mine"),
    }  # fmt: skip
    shown = attributes(answer)
    reasons = shown.pop("gen_ai.response.finish_reasons").values
    assert [one.string_value for one in reasons] == ["stop"]
    assert shown.items() >= {
        ("gen_ai.operation.name", "chat"), ("gen_ai.request.model", "echo"), ("gen_ai.provider.name", "echo"),
        ("gen_ai.request.temperature", 0.5), ("gen_ai.request.max_tokens", 9),
        ("gen_ai.usage.input_tokens", 5), ("gen_ai.usage.output_tokens", 5),
    }  # fmt: skip
    assert "hello" not in str(spans)


def test_an_upstream_is_asked_as_a_part_of_the_trace(front: tuple[Served, Upstream], collector: Collector) -> None:
    served, upstream = front
    trace = TRACE.replace("0af7", "0af8")
    assert ask(served, "remote", trace).status_code == 200
    answer = collector.trace(trace, "POST /v1/chat/completions")["chat remote"]
    assert upstream.headers[-1]["traceparent"] == f"00-{trace}-{answer.span_id.hex()}-01"
    assert upstream.headers[-1]["x-request-id"] == request.request_id("mine")  # a UUID of it


def test_failures_are_in_the_trace(front: tuple[Served, Upstream], collector: Collector) -> None:
    served, _ = front
    trace = TRACE.replace("0af7", "0af9")
    assert ask(served, "dies", trace, messages=[{"role": "user", "content": "DIE"}]).status_code == 500
    spans = collector.trace(trace, "POST /v1/chat/completions")
    assert attributes(spans["chat dies"])["error.type"] == "worker_died"
    assert attributes(spans["POST /v1/chat/completions"])["error.type"] == "500"


def test_a_stream_that_is_left_ends_its_spans(front: tuple[Served, Upstream], collector: Collector) -> None:
    served, _ = front
    trace = TRACE.replace("0af7", "0afa")
    body = {"model": "echo", "messages": [{"role": "user", "content": "a" * 1500}], "stream": True}
    headers = {"traceparent": f"00-{trace}-{PARENT}-01"}
    with httpx.stream("POST", f"{served.root}/v1/chat/completions", json=body, headers=headers, timeout=SECONDS):
        pass
    assert "chat echo" in collector.trace(trace, "POST /v1/chat/completions")


def test_a_collector_that_hangs_holds_up_no_request_and_no_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        with traced(tmp_path, None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}) as (served, _):
            assert ask(served, "echo", TRACE).status_code == 200
            waiting, _ = silent.accept()  # the first spans, which it never answers
            for _ in range(20):
                assert ask(served, "echo", TRACE).status_code == 200
            served.process.terminate()
            served.process.wait(timeout=20)
        waiting.close()


@pytest.mark.parametrize(
    ("sent", "passed_on"),
    [
        (f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"),
        ("00-nonsense", None),
    ],
)
def test_without_traces_the_clients_context_is_passed_on_as_it_came(
    tmp_path: Path, sent: str, passed_on: str | None
) -> None:
    with traced(tmp_path, None) as (served, upstream):
        body = {"model": "remote", "messages": HELLO}
        headers = {"traceparent": sent, "tracestate": "vendor=1"}
        url = f"{served.root}/v1/chat/completions"
        assert httpx.post(url, json=body, headers=headers, timeout=SECONDS).status_code == 200
        assert upstream.headers[-1].get("traceparent") == passed_on
        assert upstream.headers[-1].get("tracestate") == ("vendor=1" if passed_on else None)


def test_nothing_of_opentelemetry_is_imported_where_no_endpoint_is_named() -> None:
    program = (
        "import sys; from enginehouse.server import serving; from enginehouse.server.traces import traces;"
        "from enginehouse.config.schema import Server;"
        "assert traces(Server(), {}) is None; assert 'opentelemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=SECONDS)
