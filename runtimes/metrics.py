"""What is counted and timed, by the field's names: vLLM's where vLLM has the thing, else ours. Labels are names of the
config and of runtimes, never what a client sent. docs/operating.md explains each."""

import time
from functools import lru_cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    Summary,
    disable_created_metrics,
)

from enginehouse.runtimes.contract import Assigned, Delta, Done, Event, PromptProgress

disable_created_metrics()  # type: ignore[no-untyped-call]  # a third more lines that nobody reads
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
MODEL = ["model_name"]
SERVED = ["model_name", "runtime"]
TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = [factor * 10**power for power in range(6) for factor in (1, 2, 5)]


def histogram(name: str, help: str, buckets: tuple[float, ...] | list[int], labels: list[str] = SERVED) -> Histogram:
    return Histogram(name, help, labels, registry=REGISTRY, buckets=buckets)


def counter(name: str, help: str, labels: list[str] = SERVED) -> Counter:
    return Counter(name, help, labels, registry=REGISTRY)


FIRST_TOKEN = histogram(
    "vllm:time_to_first_token_seconds", "from the request to its first token, a load included", TOKEN_SECONDS
)
BETWEEN_TOKENS = histogram(
    "vllm:inter_token_latency_seconds", "between two tokens of an answer, as its engine gives them", TOKEN_SECONDS
)
PER_TOKEN = histogram(
    "vllm:request_time_per_output_token_seconds", "of an answer, the mean time between two tokens", TOKEN_SECONDS
)
WHOLE = histogram("vllm:e2e_request_latency_seconds", "from the request to its last token", REQUEST_SECONDS)
QUEUE = histogram(
    "vllm:request_queue_time_seconds", "in which a request waited for its turn and a slot", REQUEST_SECONDS
)
PREFILL = histogram("vllm:request_prefill_time_seconds", "from a slot to the first token", REQUEST_SECONDS)
DECODE = histogram("vllm:request_decode_time_seconds", "from the first token to the last", REQUEST_SECONDS)
LOAD_WAIT = histogram(
    "enginehouse_request_load_time_seconds", "in which a request waited for its model to be ready", REQUEST_SECONDS
)
PROMPT_LENGTH = histogram("vllm:request_prompt_tokens", "tokens of a request's prompt", TOKENS)
ANSWER_LENGTH = histogram("vllm:request_generation_tokens", "tokens of an answer", TOKENS)
PROMPT_TOKENS = counter("vllm:prompt_tokens", "tokens of prompts that were read, cached ones among them")
ANSWER_TOKENS = counter("vllm:generation_tokens", "tokens of answers")
CACHE_QUERIES = counter("vllm:prefix_cache_queries", "tokens of prompts that were looked for in the KV cache")
CACHE_HITS = counter("vllm:prefix_cache_hits", "tokens of prompts that were found there")
CACHED_TOKENS = counter(
    "enginehouse_cached_tokens", "tokens of prompts that were not read anew, by where they were", [*SERVED, "tier"]
)
GUESSED = counter("vllm:spec_decode_num_draft_tokens", "tokens of answers that were guessed")
GUESSED_RIGHT = counter("vllm:spec_decode_num_accepted_tokens", "of these, those that were right")
SUCCESS = counter("vllm:request_success", "answers that came to their end", [*SERVED, "finished_reason"])
FAILURES = counter(
    "enginehouse_request_failures", "requests that did not, by what ended them", ["model_name", "reason"]
)
LOAD_SECONDS = histogram(
    "enginehouse_load_seconds", "from an artifact to a worker that answered the smoke test", REQUEST_SECONDS
)
BUILD_SECONDS = Summary("enginehouse_build_seconds", "stages of builds", ["model_name", "stage"], registry=REGISTRY)
BUILDS = counter("enginehouse_builds", "builds that ended, by how", ["model_name", "result"])
UPSTREAM_FAILURES = counter(
    "enginehouse_upstream_failures",
    "times a server of an upstream failed a request or a check",
    ["model_name", "server"],
)
RELOADS = counter("enginehouse_config_reloads", "times the config was read again, by what came of it", ["result"])
RATE_LIMITED = counter("enginehouse_rate_limit_refusals", "requests refused for a limit of their key", ["limit"])
HTTP_REQUESTS = counter("http_requests", "requests by route and status", ["method", "handler", "status"])

for result in ("applied", "unchanged", "refused"):
    RELOADS.labels(result)
for limit in ("requests", "tokens", "concurrent"):
    RATE_LIMITED.labels(limit)

REASONS = {
    "Refused": "refused",
    "TooLong": "too_long",
    "RefusedElsewhere": "refused",
    "Busy": "busy",
    "TimedOut": "timed_out",
    "Unavailable": "unavailable",
    "EngineFailed": "engine_failed",
    "WorkerDied": "worker_died",
    "UpstreamFailed": "upstream_failed",
}


def reason_of(error: BaseException) -> str:
    """Of the few there are, whatever an upstream calls its own."""
    known = (REASONS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in REASONS)
    return next(known, "internal_error" if isinstance(error, Exception) else "cancelled")


@lru_cache(maxsize=1024)
def token_counters(model: str, runtime: str) -> tuple[Histogram, Counter]:
    return BETWEEN_TOKENS.labels(model, runtime), ANSWER_TOKENS.labels(model, runtime)


class TokenMeter:
    """Counts a job's tokens as its engine gives them, whether anyone takes them or not."""

    def __init__(self, model: str, runtime: str) -> None:
        self._served = model, runtime
        self._between, self._tokens = token_counters(model, runtime)
        self._last = 0.0  # when its last token came
        self._progress = PromptProgress(0)
        self._counted = False  # its prompt
        self._answered = 0

    @property
    def kv_tokens(self) -> int:
        """That it has in the KV cache."""
        return (self._progress.read or 0) + self._answered

    def note_progress(self, progress: PromptProgress) -> None:
        if not self._counted:
            self._progress = progress

    def note_token(self, now: float) -> None:
        if self._last:
            self._between.observe(now - self._last)
        else:
            self.note_prompt()
        self._last = now
        self._answered += 1
        self._tokens.inc()

    def note_prompt(self) -> None:
        """It is read: the first token is there, or the end."""
        if not self._counted and self._progress.read is not None:
            self._counted = True
            note_prompt(self._served, self._progress.prompt_tokens, self._progress.cached, self._progress.tier)


def note_prompt(served: tuple[str, str], tokens: int, cached: int, tier: str) -> None:
    PROMPT_TOKENS.labels(*served).inc(tokens)
    CACHE_QUERIES.labels(*served).inc(tokens)
    CACHE_HITS.labels(*served).inc(cached)
    if cached:
        CACHED_TOKENS.labels(*served, tier).inc(cached)


class RequestTimes:
    """Of one job, by its events."""

    def __init__(self, model: str) -> None:
        self._model, self._began = model, time.monotonic()
        self._served = model, ""
        self._assigned: Assigned | None = None
        self._admitted = 0.0
        self._first = 0.0  # seconds until its first token
        self._moved = False  # to another engine, in the middle
        self._ended = False

    def note(self, event: Event) -> None:
        match event:
            case Delta():
                if not self._first:
                    self._note_first(time.monotonic() - self._began)
            case PromptProgress():
                if event.read == event.prompt_tokens and not self._first:
                    self._note_first(self._admitted - self._began + event.seconds)
            case Assigned():
                self._moved = self._assigned is not None
                self._assigned, self._admitted = event, time.monotonic()
                self._served = self._model, event.runtime
            case Done():
                self._note_end(event)

    def failed(self, error: BaseException) -> None:
        if not self._ended:  # else its client left with the end in hand
            FAILURES.labels(self._model, reason_of(error)).inc()

    def _note_first(self, seconds: float) -> None:
        self._first = seconds
        FIRST_TOKEN.labels(*self._served).observe(seconds)

    def _note_end(self, done: Done) -> None:
        assert self._assigned
        self._ended = True
        served, usage, waits = self._served, done.usage, self._assigned.waits
        passed = time.monotonic() - self._began
        # What the engine says of its times is right also where a client takes long to read.
        WHOLE.labels(*served).observe(passed if self._moved or not self._first else self._first + done.decode_seconds)
        QUEUE.labels(*served).observe(waits.turn + done.slot_seconds)
        LOAD_WAIT.labels(*served).observe(waits.load)
        PREFILL.labels(*served).observe(max(0.0, done.prefill_seconds - done.slot_seconds))
        DECODE.labels(*served).observe(done.decode_seconds)
        if usage.completion_tokens > 1:
            PER_TOKEN.labels(*served).observe(done.decode_seconds / (usage.completion_tokens - 1))
        PROMPT_LENGTH.labels(*served).observe(usage.prompt_tokens)
        ANSWER_LENGTH.labels(*served).observe(usage.completion_tokens)
        GUESSED.labels(*served).inc(usage.accepted_prediction_tokens + usage.rejected_prediction_tokens)
        GUESSED_RIGHT.labels(*served).inc(usage.accepted_prediction_tokens)
        SUCCESS.labels(*served, done.finish_reason).inc()
        if self._assigned.runtime == "upstream":
            note_prompt(served, usage.prompt_tokens, usage.cached_tokens, "upstream")
            ANSWER_TOKENS.labels(*served).inc(usage.completion_tokens)
