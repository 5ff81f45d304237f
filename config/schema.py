"""Every key of the config file, with its default. A default appears here and nowhere else."""

import re
from typing import Annotated, Any, Literal

import msgspec

LARGEST_PORT = 65535
DEFAULT_CONTEXT = 8192  # tokens; the most a model gets without asking
DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h)$")
SECONDS = {"s": 1, "m": 60, "h": 3600}

Duration = Annotated[str, msgspec.Meta(pattern=r"^(\d+(\.\d+)?[smh]|forever)$")]
Size = Annotated[str, msgspec.Meta(pattern=r"^(\d+(\.\d+)?(%|MiB|GiB))$")]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_PORT)] = 8080
    api_keys: tuple[str, ...] = ()  # empty = open to everyone who can connect
    allow_open: bool = False  # without keys, listen on more than loopback all the same
    max_queue: Positive = 256  # waiting requests per model; beyond it 429


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Annotated[str, msgspec.Meta(min_length=1)]  # hub id | folder | .gguf file | builtin:NAME
    revision: str | None = None  # of a hub id: branch, tag or commit
    runtime: str = "auto"  # or the name of a file in runtimes/engines/
    precision: str = "auto"  # auto | int4 | int8 | bf16 | f16 | f32, or a toolchain's own name (Q4_K_M)
    context: Positive | None = None  # tokens a request may use; unset = the model's own, at most DEFAULT_CONTEXT
    slots: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8  # sequences decoded together
    keep_alive: Duration = "10m"  # an idle model is unloaded after it
    aliases: tuple[str, ...] = ()  # further names it answers to
    options: dict[str, dict[str, Any]] = {}  # by runtime, passed to its loader


class Routing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    objective: Literal["balanced", "latency", "throughput", "memory"] = "balanced"  # what is to be least, see README
    measure: Literal["idle", "on-demand", "off"] = (
        "idle"  # untried candidates: when no request comes; by `bench`; never
    )
    strict: bool = False  # a request that the chosen engine cannot honour goes to no other one


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: Server = Server()
    routing: Routing = Routing()
    memory_budget: Size = "80%"  # for loaded models: of the memory there is, or in MiB or GiB
    cache_dir: str = "~/.cache/enginehouse"
    models: dict[str, Model] = {}


def seconds(duration: str) -> float | None:
    """Seconds of a duration as the schema admits it, None for "forever"."""
    match = DURATION.match(duration)
    return float(match[1]) * SECONDS[match[2]] if match else None


def bytes_of(size: str, whole: int) -> int:
    """Bytes of a size as the schema admits it; `whole` is what a percentage is of."""
    number, unit = re.fullmatch(r"([\d.]+)(%|MiB|GiB)", size).groups()  # type: ignore[union-attr]
    return int(float(number) * {"%": whole / 100, "MiB": 1 << 20, "GiB": 1 << 30}[unit])
