"""GET /metrics, for Prometheus: what was counted and timed, and what is loaded and under way now."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version

from litestar import Response, get
from litestar.datastructures import State
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from enginehouse.runtimes import metrics as counted
from enginehouse.runtimes.metrics import MODEL, REGISTRY, SERVED
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.runtimes.upstream.replica import Replica
from enginehouse.server.openapi import described

COUNTS = {
    "requests": "requests taken",
    "loads": "times a model was loaded",
    "load_failures": "times a model could not be loaded",
    "unloads": "times a model was unloaded, or its worker found dead",
    "evictions": "times an idle model was unloaded to make room for another",
    "deaths": "workers that died",
    "restarts": "loads after the death of a worker",
    "reruns": "requests that were run again from the start after their worker died",
    "continuations": "answers that went on in the middle on another worker",
    "overflows": "requests that went to an upstream in the place of an engine here",
    "detours": "requests that went past the best candidate for a feature it lacks",
}
# OpenTelemetry's names for what has one of vLLM's too; their labels are its attributes.
OPENTELEMETRY = {
    counted.FIRST_TOKEN: "gen_ai_server_time_to_first_token_seconds",
    counted.PER_TOKEN: "gen_ai_server_time_per_output_token_seconds",
    counted.WHOLE: "gen_ai_server_request_duration_seconds",
}
UPSTREAM = ["model_name", "server"]
ATTRIBUTES = {"model_name": "gen_ai_request_model", "runtime": "gen_ai_provider_name"}

MEDIA_TYPE = CONTENT_TYPE_LATEST.removesuffix("; charset=utf-8")  # Litestar says it too


@get("/metrics", media_type=MEDIA_TYPE, operation_class=described("text/plain", failures=(401, 500)))
async def metrics(state: State) -> Response[bytes]:
    """What docs/operating.md lists, in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families([*of_pool(state.pool), *of_server(getattr(state, "refused", ""))]))
    text = await asyncio.to_thread(generate_latest, registry)
    return Response(text, media_type=MEDIA_TYPE)


class Families(Collector):
    """What was seen on the event loop's thread, and what can be read from any."""

    def __init__(self, seen: Iterable[Metric]) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        yield from self._seen
        yield from REGISTRY.collect()
        for histogram, name in OPENTELEMETRY.items():
            for family in histogram.collect():
                yield renamed(family, name)


def renamed(family: Metric, name: str) -> Metric:
    other = Metric(name, family.documentation, family.type)
    for sample in family.samples:
        labels = {ATTRIBUTES.get(label, label): value for label, value in sample.labels.items()}
        other.samples.append(Sample(name + sample.name.removeprefix(family.name), labels, sample.value))
    return other


def of_pool(pool: Pool) -> Iterator[Metric]:
    names = list(pool.config.models)
    for what, help in COUNTS.items():
        family = CounterMetricFamily(f"enginehouse_{what}", help, labels=MODEL)
        for name in names:
            family.add_metric([name], pool.counts[what, name])
        yield family
    under_way = {name: pool.under_way(name) for name in names}
    running = {name: min(pool.running(name), under_way[name]) for name in names}
    yield gauge("enginehouse_requests_under_way", "answered now or waiting", MODEL, by_name(under_way))
    yield gauge("vllm:num_requests_running", "requests that an engine works on", MODEL, by_name(running))
    waiting = {name: under_way[name] - running[name] for name in names}
    yield gauge("vllm:num_requests_waiting", "requests that wait for one", MODEL, by_name(waiting))
    yield from of_workers(pool)
    help = "whether a server of an upstream is asked: 0 while it is left alone because it failed"
    yield gauge("enginehouse_upstream_up", help, UPSTREAM, {key: not one.resting for key, one in replicas(pool)})
    help = "requests under way at a server of an upstream"
    yield gauge("enginehouse_upstream_requests", help, UPSTREAM, {key: one.load for key, one in replicas(pool)})


def replicas(pool: Pool) -> Iterator[tuple[tuple[str, str], Replica]]:
    for name, replica in pool.replicas():
        yield (name, replica.url), replica


def of_workers(pool: Pool) -> Iterator[Metric]:
    loaded, memory, used, room = (Counter[tuple[str, ...]]() for _ in range(4))
    for name, one in pool.loaded():
        served = name, one.assigned.runtime
        loaded[*served, one.assigned.device, one.assigned.precision] += 1
        memory[served] += one.worker.memory()[0]
        used[served] += sum(meter.kv_tokens for meter in one.worker.answering)
        room[served] += one.worker.facts.kv_tokens
    yield gauge("enginehouse_model_loaded", "workers of a model", [*SERVED, "device", "precision"], loaded)
    yield gauge("enginehouse_memory_bytes", "resident memory of a model's workers", SERVED, memory)
    yield gauge("enginehouse_memory_budget_bytes", "that loaded models may take", [], {(): pool.memory_budget})
    help = "the share of the KV cache that answers under way have, from 0 to 1"
    shares = {served: used[served] / tokens for served, tokens in room.items() if tokens}
    yield gauge("vllm:kv_cache_usage_perc", help, SERVED, shares)


def of_server(refused: str) -> Iterator[Metric]:
    help = "whether the config file, as it is now, could be used"
    yield gauge("enginehouse_config_valid", help, [], {(): not refused})
    yield gauge("enginehouse_build_info", "the version", ["version"], {(version("enginehouse"),): 1})


def by_name(values: dict[str, int]) -> dict[tuple[str, ...], int]:
    return {(name,): value for name, value in values.items()}


def gauge(name: str, help: str, labels: list[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
