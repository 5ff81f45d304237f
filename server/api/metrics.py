"""GET /metrics, for Prometheus: what the pool has counted, and what is in memory now."""

from collections.abc import Iterator

from litestar import Response, get
from litestar.datastructures import State
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server.openapi import described

HELP = {
    "requests": "requests taken",
    "prompt_tokens": "prompt tokens of answers that ended",
    "completion_tokens": "tokens of answers that ended",
    "loads": "times a model was loaded",
    "unloads": "times a model was unloaded, or its worker found dead",
    "deaths": "workers that died",
    "reruns": "requests that were run again from the start after their worker died",
    "continuations": "answers that went on in the middle on another worker",
    "overflows": "requests that went to an upstream in the place of an engine here",
    "detours": "requests that went past the best candidate for a feature it lacks",
}


@get("/metrics", media_type=CONTENT_TYPE_LATEST, operation_class=described("text/plain", failures=(401, 500)))
async def metrics(state: State) -> Response[bytes]:
    """Counters by model in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(Counts(state.pool))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class Counts(Collector):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        for what, help in HELP.items():
            family = CounterMetricFamily(f"enginehouse_{what}", help, labels=["model"])
            for name in self._pool.config.models:
                family.add_metric([name], self._pool.counts[what, name])
            yield family
        resident = GaugeMetricFamily("enginehouse_memory_bytes", "memory of a model's workers", labels=["model"])
        for name in self._pool.config.models:
            resident.add_metric([name], self._pool.memory(name))
        yield resident
        under_way = GaugeMetricFamily("enginehouse_requests_under_way", "answered now or waiting", labels=["model"])
        for name in self._pool.config.models:
            under_way.add_metric([name], self._pool.under_way(name))
        yield under_way
