"""What the house says of a model to people and clients: its state now, and which runtime serves it and why."""

from typing import Literal

import msgspec

from enginehouse.optimize.artifact import Quality, Source
from enginehouse.runtimes.contract import Device
from enginehouse.runtimes.pool.host import Host
from enginehouse.runtimes.pool.routing import Candidate, Figures, Ranked, Rejected


class Stage(msgspec.Struct, frozen=True):
    """How far something is that is under way."""

    stage: str
    percent: int
    seconds_left: int


class Unloaded(msgspec.Struct, frozen=True, tag_field="state", tag="unloaded"):
    requests: int


class Loading(msgspec.Struct, frozen=True, tag_field="state", tag="loading"):
    requests: int
    stage: str
    percent: int
    seconds_left: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag_field="state", tag="loaded"):
    better: Stage | msgspec.UnsetType = msgspec.UNSET  # what is built to take its place
    requests: int
    runtime: str
    precision: str
    device: str
    context_length: int
    kv_bytes_per_token: int
    slots: int
    memory_bytes: int


Status = Unloaded | Loading | Loaded


class OnDisk(msgspec.Struct, frozen=True):
    """A model whose source is on this machine."""

    source: Source
    context_length: int  # tokens that a request may use
    chosen: Ranked | None  # what serves it, or would
    chat_template: str | None


class ExplainedCandidate(msgspec.Struct, frozen=True):
    candidate: Candidate
    reason: str
    features: tuple[str, ...]
    figures: Figures | None
    key: str
    measured_at: int | None  # seconds since the epoch
    cost: float | None  # of the objective
    quality: Quality | None


class ExplainedHost(Host, frozen=True, kw_only=True):
    kind: str
    fingerprint: str


class ExplainedRuntime(msgspec.Struct, frozen=True):
    """A runtime on this host."""

    name: str
    unavailable: str | None  # why it cannot run here, and the remedy
    cannot_build: str | None  # why it makes no models from checkpoints
    devices: tuple[Device, ...]  # none where it is not installed
    versions: dict[str, str]  # by package


class Surroundings(msgspec.Struct, frozen=True):
    """What this machine is and has to serve with, whatever the model."""

    host: ExplainedHost
    runtimes: tuple[ExplainedRuntime, ...]
    memory_budget_bytes: int  # for all models together


class ExplainedReplica(msgspec.Struct, frozen=True):
    """One server of an upstream."""

    url: str
    requests: int  # of ours, under way there
    failure: str  # "": it answers


class ExplainedUpstream(msgspec.Struct, frozen=True):
    model: str  # its name there
    overflow: Literal["never", "failing", "loading", "busy"]
    features: tuple[str, ...]
    replicas: tuple[ExplainedReplica, ...]


class Explanation(msgspec.Struct, frozen=True):
    """Which runtime serves a model, and why."""

    model: str
    source: str
    objective: Literal["balanced", "latency", "throughput", "memory"]
    chosen: str | None  # key of a candidate
    reason: str | None
    candidates: tuple[ExplainedCandidate, ...]  # best first
    rejected: tuple[Rejected, ...]
    host: ExplainedHost
    upstream: ExplainedUpstream | None = None  # what serves it, or takes what it cannot
