"""Traces, by OpenTelemetry's conventions: a span for each request, under it one for each answer, and under that what it
waited for, its prefill and its decode, from what its events say. OpenTelemetry is imported where traces are wanted."""

import importlib.util
import logging
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from contextlib import aclosing
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from enginehouse.config.load import BadConfig
from enginehouse.config.schema import Server
from enginehouse.runtimes.contract import NEUTRAL, Assigned, Chat, Done, Event, Job, PromptProgress
from enginehouse.runtimes.metrics import reason_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger("enginehouse.traces")
MISSING = "traces need OpenTelemetry: pip install 'enginehouse[otel]'"
ENDPOINTS = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
PARENT, STATE = "traceparent", "tracestate"
W3C = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
STATE_LETTERS = 512
SCOPE = "enginehouse.trace"  # of a request
QUIET = ("/health", "/ready", "/metrics")  # asked for every few seconds
FAREWELL_SECONDS = 2.0  # for the last spans
# A request's fields by the names of the conventions.
ASKED = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


class Traces:
    """Where spans go. A thread of its own sends them; what it cannot send is dropped."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self.tracer = provider.get_tracer("enginehouse", version("enginehouse"))
        self.w3c = TraceContextTextMapPropagator()

    def begin(self, scope: MutableMapping[str, Any], request_id: str) -> "RequestTrace":
        from opentelemetry.trace import SpanKind

        attributes = {"enginehouse.request_id": request_id}
        parent = self.w3c.extract(context_headers(scope["headers"]))
        span = self.tracer.start_span("request", parent, SpanKind.SERVER, attributes)
        return RequestTrace(self, span)

    def end(self) -> None:
        """Sends what is left, unless that takes long."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FAREWELL_SECONDS)


def traces(server: Server, environ: Mapping[str, str] = os.environ) -> Traces | None:
    """None where no endpoint is named; its headers, sampling and more are as OpenTelemetry's own variables say."""
    if not server.otlp_traces_endpoint and not any(environ.get(name) for name in ENDPOINTS):
        return None
    if not installed():
        log.warning("%s", MISSING)
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {"service.name": environ.get("OTEL_SERVICE_NAME", "enginehouse"), "service.version": version("enginehouse")}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(server.otlp_traces_endpoint)))
    return Traces(provider)


def check(server: Server) -> None:
    """Raises BadConfig where they are asked for and cannot be had."""
    if server.otlp_traces_endpoint and not installed():
        raise BadConfig(f"'server.otlp_traces_endpoint': {MISSING}")


def installed() -> bool:
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:  # not even what it lies in
        return False


class RequestTrace:
    def __init__(self, traces: Traces, span: "Span") -> None:
        self._traces, self._span = traces, span

    @property
    def trace_id(self) -> str:
        return f"{self._span.get_span_context().trace_id:032x}"

    def answer(self, job: Job) -> "AnswerTrace":
        from opentelemetry.trace import set_span_in_context

        operation = "chat" if isinstance(job.prompt, Chat) else "text_completion"
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": job.model,
            "gen_ai.request.stream": job.streamed,
            "gen_ai.response.id": job.id,
        }
        for field, name in ASKED.items():
            if (value := getattr(job.sampling, field)) != getattr(NEUTRAL, field):
                attributes[name] = value
        context = set_span_in_context(self._span)
        span = self._traces.tracer.start_span(f"{operation} {job.model}", context, attributes=attributes)
        return AnswerTrace(self._traces, span)

    def end(self, method: str, route: str, status: int) -> None:
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{method} {route}")
        about: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
        self._span.set_attributes(about)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", str(status))
        self._span.end()


class AnswerTrace:
    def __init__(self, traces: Traces, span: "Span") -> None:
        from opentelemetry.trace import set_span_in_context

        self._traces, self._span = traces, span
        self._context = set_span_in_context(span)
        self._admitted = 0.0  # when, in seconds since the epoch
        self._tier = ""
        self._ended = False

    @property
    def headers(self) -> dict[str, str]:
        """For a server that is asked for this answer."""
        carrier: dict[str, str] = {}
        self._traces.w3c.inject(carrier, self._context)
        return carrier

    def note(self, event: Event) -> None:
        match event:
            case Assigned():
                self._note_admission(event)
            case PromptProgress():
                self._tier = event.tier or self._tier
            case Done():
                self._note_end(event)

    def failed(self, error: BaseException) -> None:
        from opentelemetry.trace import StatusCode

        if self._ended:  # its client left with the end in hand
            return
        self._span.set_status(StatusCode.ERROR)
        self._span.set_attribute("error.type", reason_of(error))

    def end(self) -> None:
        self._span.end()

    def _note_admission(self, assigned: Assigned) -> None:
        self._admitted = time.time()
        who = {
            "gen_ai.provider.name": assigned.runtime,
            "enginehouse.precision": assigned.precision,
            "enginehouse.device": assigned.device,
        }
        self._span.set_attributes(who)
        waits = assigned.waits
        began = self._admitted - waits.turn - waits.load - waits.admission
        for name, seconds in (("queue", waits.turn), ("load", waits.load), ("admission", waits.admission)):
            self._child(name, began, seconds)
            began += seconds

    def _note_end(self, done: Done) -> None:
        self._ended = True
        usage, prefill = done.usage, done.prefill_seconds - done.slot_seconds
        if done.slot_seconds:
            self._child("slot", self._admitted, done.slot_seconds)
        read = {"enginehouse.cached_tokens": usage.cached_tokens, "enginehouse.cache_tier": self._tier}
        self._child("prefill", self._admitted + done.slot_seconds, prefill, read)
        first = self._admitted + done.prefill_seconds
        self._child("decode", first, done.decode_seconds, {"gen_ai.usage.output_tokens": usage.completion_tokens})
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "gen_ai.response.finish_reasons": (done.finish_reason,),
            }
        )

    def _child(self, name: str, began: float, seconds: float, attributes: dict[str, Any] | None = None) -> None:
        span = self._traces.tracer.start_span(name, self._context, attributes=attributes, start_time=nanoseconds(began))
        span.end(nanoseconds(began + seconds))


async def traced(trace: AnswerTrace, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same events, noted as they pass."""
    try:
        async with aclosing(events):
            async for event in events:
                trace.note(event)
                yield event
    except BaseException as error:
        trace.failed(error)
        raise
    finally:
        trace.end()


def context_headers(headers: Any) -> dict[str, str]:
    """W3C's, of a request, where they are right."""
    sent = {name: value.decode("latin-1") for name, value in headers if name in (PARENT.encode(), STATE.encode())}
    found = {name.decode(): value for name, value in sent.items()}
    if not W3C.fullmatch(found.get(PARENT, "")):
        return {}
    if not found.get(STATE, "").isascii() or len(found.get(STATE, "")) > STATE_LETTERS:
        del found[STATE]
    return found


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
