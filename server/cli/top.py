"""`enginehouse top`: what a running server does, in the terminal, anew every two seconds. It reads /v1/models and
/metrics, as anyone may."""

import contextlib
import json
import select
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msgspec
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from enginehouse.config.schema import Config
from enginehouse.runtimes.errors import Unavailable
from enginehouse.server.cli.client import Address, Failed, address, connected, models, told
from enginehouse.server.cli.ps import cells

SECONDS = 2.0  # between two looks
QUIT = ("q", "\x1b", "\x04")
NUMBERS = {"run": 3, "wait": 4, "read/s": 6, "tok/s": 6, "first": 5, "KV": 4, "MiB": 6}  # of letters
Metrics = Mapping[str, Metric]


class ModelFigures(msgspec.Struct, frozen=True):
    model: str
    state: str  # who serves it, or how far its load is
    running: int
    waiting: int
    prompt_tokens_per_second: float
    answer_tokens_per_second: float
    first_token_seconds: float | None  # on average; None: nobody had one
    kv_cache_share: float | None  # None: not known
    memory_bytes: int


class UpstreamFigures(msgspec.Struct, frozen=True):
    model: str
    server: str
    up: bool
    requests: int
    failures: int


class Frame(msgspec.Struct, frozen=True):
    seconds: float  # that what is counted is of: since the look before, or since the server's start
    requests_per_second: float
    failures_per_second: float
    memory_bytes: int
    memory_budget_bytes: int
    config_valid: bool
    models: list[ModelFigures]
    upstreams: list[UpstreamFigures]


class Look(msgspec.Struct, frozen=True):
    """At one moment."""

    at: float  # seconds since the epoch
    models: list[dict[str, Any]]
    metrics: Metrics

    def samples(self, name: str, **labels: str) -> list[Sample]:
        """Of that name, with these labels."""
        family = self.metrics.get(name.removesuffix("_total").removesuffix("_sum").removesuffix("_count"))
        samples = family.samples if family else ()
        return [one for one in samples if one.name == name and labels.items() <= one.labels.items()]

    def sum(self, name: str, **labels: str) -> float:
        return sum(one.value for one in self.samples(name, **labels))


def top(config: Config, once: bool, as_json: bool) -> None:
    at = address(config)
    if as_json:
        print(json.dumps(msgspec.to_builtins(frame(look(at), None)), indent=2))
    elif once or not sys.stdout.isatty():
        Console().print(drawn(frame(look(at), None)))
    else:
        watch(at)


def watch(at: Address) -> None:
    """Until `q` or Ctrl-C. A server that is gone may come back."""
    before, shown = None, drawn(frame(look(at), None))
    with Live(shown, screen=True, auto_refresh=False) as live, keys():
        while not pressed(SECONDS):
            try:
                now = look(at)
                shown, before = drawn(frame(now, before)), now
            except (Unavailable, Failed) as error:
                shown, before = Text(str(error)), None
            live.update(shown, refresh=True)


def look(at: Address) -> Look:
    with connected(at) as client:
        client.timeout = httpx.Timeout(10)
        listed, reply = models(client), client.get("/metrics")
    if not reply.is_success:
        told(reply)
    families = text_string_to_metric_families(reply.text)
    return Look(time.time(), listed, {family.name: family for family in families})


def frame(now: Look, before: Look | None) -> Frame:
    since = before.at if before else now.sum("process_start_time_seconds")
    seconds = max(0.001, now.at - since)

    def more(name: str, **labels: str) -> float:
        """Never less than nothing: the server may have been started anew."""
        return max(0.0, now.sum(name, **labels) - (before.sum(name, **labels) if before else 0.0))

    def figures(listed: dict[str, Any]) -> ModelFigures:
        mine = {"model_name": listed["id"]}
        firsts = more("vllm:time_to_first_token_seconds_count", **mine)
        shares = now.samples("vllm:kv_cache_usage_perc", **mine)
        return ModelFigures(
            listed["id"],
            state_of(listed["status"]),
            int(now.sum("vllm:num_requests_running", **mine)),
            int(now.sum("vllm:num_requests_waiting", **mine)),
            more("vllm:prompt_tokens_total", **mine) / seconds,
            more("vllm:generation_tokens_total", **mine) / seconds,
            more("vllm:time_to_first_token_seconds_sum", **mine) / firsts if firsts else None,
            max(share.value for share in shares) if shares else None,
            int(now.sum("enginehouse_memory_bytes", **mine)),
        )

    return Frame(
        seconds,
        more("enginehouse_requests_total") / seconds,
        more("enginehouse_request_failures_total") / seconds,
        int(now.sum("enginehouse_memory_bytes")),
        int(now.sum("enginehouse_memory_budget_bytes")),
        now.sum("enginehouse_config_valid") == 1,
        [figures(listed) for listed in now.models],
        list(upstreams(now)),
    )


def upstreams(now: Look) -> Iterator[UpstreamFigures]:
    for sample in now.samples("enginehouse_upstream_up"):
        model, server = sample.labels["model_name"], sample.labels["server"]
        requests, failures = (
            int(now.sum(f"enginehouse_upstream_{name}", model_name=model, server=server))
            for name in ("requests", "failures_total")
        )
        yield UpstreamFigures(model, server, sample.value == 1, requests, failures)


def state_of(status: dict[str, Any]) -> str:
    return "" if status["state"] == "unloaded" else cells(status)[0]


def drawn(frame: Frame) -> RenderableType:
    """Within 80 columns."""
    memory = f"{frame.memory_bytes / 2**30:.1f} of {frame.memory_budget_bytes / 2**30:.1f} GiB"
    head = f"{frame.requests_per_second:.1f} requests/s, {frame.failures_per_second:.1f} failed; memory {memory}"
    parts: list[RenderableType] = [Text(f"{head}; {span_of(frame.seconds)}", overflow="ellipsis", no_wrap=True)]
    if not frame.config_valid:
        parts.append(Text("the config file is refused, and the one before it is in use; see the log"))
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
    for title, part in (("model", 2), ("served by", 3)):
        table.add_column(title, no_wrap=True, overflow="ellipsis", ratio=part)
    for title, letters in NUMBERS.items():
        table.add_column(title, justify="right", no_wrap=True, width=letters)
    for one in frame.models:
        first = "" if one.first_token_seconds is None else seconds_of(one.first_token_seconds)
        share = "" if one.kv_cache_share is None else f"{one.kv_cache_share:.0%}"
        speeds = f"{one.prompt_tokens_per_second:.0f}", f"{one.answer_tokens_per_second:.1f}"
        memory = str(one.memory_bytes >> 20) if one.memory_bytes else ""
        table.add_row(one.model, one.state, str(one.running), str(one.waiting), *speeds, first, share, memory)
    parts.append(table)
    if frame.upstreams:
        others = Table("upstream", "of", "", "run", "failed", box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for server in frame.upstreams:
            state = "up" if server.up else "resting"
            others.add_row(server.server, server.model, state, str(server.requests), str(server.failures))
        parts += [Text(""), others]
    return Group(*parts)


def span_of(seconds: float) -> str:
    return f"last {seconds:.0f} s" if seconds < 60 else f"last {seconds / 60:.0f} min"


def seconds_of(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"


@contextlib.contextmanager
def keys() -> Iterator[None]:
    """Each key is there as soon as it is pressed; nothing is shown of it."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def pressed(seconds: float) -> bool:
    """Whether a key is pressed within that time that ends it."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in QUIT:
            return True
    return False
