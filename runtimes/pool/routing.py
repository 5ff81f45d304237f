"""Decides which runtime serves a model, and says why. No I/O, no clock, no await."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from enginehouse.config.schema import Model
from enginehouse.optimize import ladder
from enginehouse.optimize.artifact import Source
from enginehouse.runtimes.contract import Device
from enginehouse.runtimes.errors import Refused

# Without measurements, the order of preference on a kind of host; a runtime that is not in it serves only when pinned.
# Where the orders are from: apple, intel, nvidia: the runtimes' own makers recommend them there (MLX, OpenVINO and
# CUDA builds). arm: llama.cpp's and OpenVINO's kernels are written for it, ONNX Runtime's int4 ones come after.
# other: measured on an AMD Zen4 with two cores (tests/bench/engines.py; the figures are in DECISIONS.md).
PRIOR: dict[str, tuple[str, ...]] = {
    "apple": ("mlx", "llamacpp", "onnx"),
    "intel": ("openvino", "llamacpp", "onnx"),
    "nvidia": ("llamacpp", "onnx", "openvino"),
    "arm": ("llamacpp", "openvino", "onnx"),
    "other": ("openvino", "onnx", "llamacpp"),
}
DEVICES = ("gpu", "cpu", "npu")  # of one runtime, the first that is there; an NPU only when nothing else is
AS_IS = "as-is"  # in a candidate's key, where the source is loaded itself
WORTH = 0.95  # of the cost: what twice the bits must save to be taken for their speed
# The request that latencies are worked out for.
PROMPT_TOKENS, ANSWER_TOKENS = 512, 128

Objective = Literal["balanced", "latency", "throughput", "memory"]


class Offer(msgspec.Struct, frozen=True):
    """What one runtime could do on this host, as found out by the pool."""

    runtime: str
    format: str
    unavailable: str | None = None
    precisions: Mapping[str, str] = {}  # of the toolchain that makes its format: accepted name -> own name
    ladder: tuple[str, ...] = ()  # that toolchain's own names, for `precision: auto` to go up
    below: Mapping[str, str] = {}  # own names whose artifacts did not pass the quality gate, and by how much
    cannot_build: str | None = None  # why that toolchain cannot make an artifact of this source
    features: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()


class Candidate(msgspec.Struct, frozen=True):
    runtime: str
    device: str
    format: str
    precision: str  # the toolchain's own name; "" = the source as it is

    @property
    def key(self) -> str:
        return f"{self.runtime}/{self.device}/{self.precision or AS_IS}"


class Figures(msgspec.Struct, frozen=True):
    """One measurement of a candidate on this host; tokens per second, seconds, bytes."""

    prefill: float  # of a prompt of PROMPT_TOKENS
    decode: float  # one request
    decode_crowd: float  # `slots` requests together
    slots: int
    first_token_seconds: float  # of a prompt of PROMPT_TOKENS
    load_seconds: float
    memory_bytes: int  # at its peak
    setting: str = ""  # of the engine, by name; "" for the usual one

    def cost(self, objective: Objective) -> float:
        """What is to be least. Balanced: seconds of the latency request alone, and of its answer's share in a crowd."""
        alone = self.first_token_seconds + ANSWER_TOKENS / self.decode
        crowd = ANSWER_TOKENS / self.decode_crowd
        costs = {"latency": alone, "throughput": crowd, "memory": float(self.memory_bytes), "balanced": alone + crowd}
        return costs[objective]


class Ranked(msgspec.Struct, frozen=True):
    candidate: Candidate
    reason: str
    features: tuple[str, ...]
    figures: Figures | None = None


class Parked(msgspec.Struct, frozen=True):
    """A candidate that may not be tried for a while."""

    why: str  # what it did, and until when
    message: str  # what was last heard of it: for the operator, not for every client

    @property
    def in_full(self) -> str:
        return f"{self.why}: {self.message}"


class Rejected(msgspec.Struct, frozen=True):
    runtime: str
    device: str
    reason: str


class Decision(msgspec.Struct, frozen=True):
    """Every candidate, best first, and a sentence for everything that is none."""

    model: str
    objective: Objective
    host: str  # kind
    ranked: tuple[Ranked, ...]
    rejected: tuple[Rejected, ...]
    unquantized: tuple[Ranked, ...] = ()  # of the same runtimes: what may stand in while one of `ranked` is built
    unmeasured: Ranked | None = None  # the first of `ranked` in twice the bits, if that may be quicker


def decide(
    name: str,
    model: Model,
    source: Source,
    offers: Sequence[Offer],
    host: str,
    objective: Objective = "balanced",
    figures: Mapping[str, Figures] = {},
    parked: Mapping[str, Parked] = {},
    enforce: bool = False,
) -> Decision:
    """`figures` and `parked` by candidate key; `enforce`: nothing below the quality
    gate's bar serves, pinned or not."""
    candidates: list[tuple[Candidate, Offer]] = []
    waiting: list[tuple[Candidate, Offer]] = []
    rejected: list[Rejected] = []
    prior = PRIOR[host]
    for offer in sorted(offers, key=lambda offer: preference(prior, source, offer)):
        for device in devices(offer):
            verdict = judge(model, source, offer, device, prior, enforce)
            if isinstance(verdict, Rejected):
                rejected.append(verdict)
                continue
            if model.precision == "auto" and verdict.precision in offer.ladder:
                below = ladder.passed_over(offer.ladder, verdict.precision, offer.below)
                rejected += [Rejected(verdict.runtime, verdict.device, why) for why in below]
            if verdict.key in parked:
                waiting.append((verdict, offer))
            else:
                candidates.append((verdict, offer))
    quicker, slower, unmeasured = in_more_bits(model, candidates, figures, parked, objective)
    candidates, rejected = candidates + quicker, rejected + slower
    if candidates:
        rejected += [Rejected(c.runtime, c.device, parked[c.key].in_full) for c, _ in waiting]
        ranked = rank(model, candidates, figures, objective, host)
    else:  # better one that failed before than none
        ranked = tuple(Ranked(c, f"nothing else is left; {parked[c.key].why}", o.features) for c, o in waiting)
    exact = tuple(unquantized(source, c, o) for c, o in candidates if (c, o) not in quicker)
    first = ranked[0].candidate.key if ranked else ""
    return Decision(name, objective, host, ranked, tuple(rejected), exact, unmeasured.get(first))


def preference(prior: Sequence[str], source: Source, offer: Offer) -> tuple[bool, int, str]:
    """Until it is measured, a file that can be served as it is comes before what would be made of it."""
    as_it_is = source.kind == "gguf" and offer.format == "gguf"
    return not as_it_is, place(prior, offer.runtime), offer.runtime


def place(prior: Sequence[str], runtime: str) -> int:
    return prior.index(runtime) if runtime in prior else len(prior)


def devices(offer: Offer) -> list[Device]:
    """Best kind first; one that cannot compute at all still gets its sentence."""
    return sorted(offer.devices or (Device("", "cpu"),), key=lambda device: DEVICES.index(device.kind))


def judge(
    model: Model, source: Source, offer: Offer, device: Device, prior: Sequence[str], enforce: bool
) -> Candidate | Rejected:
    def no(reason: str) -> Rejected:
        return Rejected(offer.runtime, device.kind, reason)

    if model.runtime not in ("auto", offer.runtime):
        return no(f"'runtime' is pinned to '{model.runtime}'")
    if reason := offer.unavailable or device.unavailable:
        return no(reason)
    ready = source.kind == offer.format
    if model.runtime == "auto" and offer.runtime not in prior and not ready:
        return no(f"not chosen on this kind of host unless 'runtime: {offer.runtime}' says so")
    auto = model.precision == "auto"
    precision = {name.lower(): value for name, value in offer.precisions.items()}.get(model.precision.lower())
    if ready and (auto or precision == source.precision):
        return Candidate(offer.runtime, device.kind, offer.format, "")
    if source.kind not in ("checkpoint", "gguf", offer.format) or not offer.precisions:
        return no(f"loads {offer.format}, which cannot be made of '{source.id}'")
    if precision is None and not auto:
        return no(f"unknown precision '{model.precision}'; have: auto, {', '.join(offer.precisions)}")
    if offer.cannot_build:
        return no(offer.cannot_build)
    if auto:
        precision = ladder.lowest(offer.ladder, offer.below)
    if precision is None:
        return no("; ".join(f"{name} {offer.below[name]}" for name in offer.ladder))
    if enforce and precision in offer.below:
        return no(f"{precision} {offer.below[precision]}, and optimize.quality is 'enforce'; set precision: auto")
    return Candidate(offer.runtime, device.kind, offer.format, precision)


def in_more_bits(
    model: Model,
    candidates: Sequence[tuple[Candidate, Offer]],
    figures: Mapping[str, Figures],
    parked: Mapping[str, Parked],
    objective: Objective,
) -> tuple[list[tuple[Candidate, Offer]], list[Rejected], dict[str, Ranked]]:
    """On some hosts the smaller artifact is the slower one. What was measured to be worth twice the bits, what was not,
    and what nobody has measured yet, by the key of the candidate that it may beat."""
    worth, not_worth, unmeasured = list[tuple[Candidate, Offer]](), list[Rejected](), dict[str, Ranked]()
    for candidate, offer in candidates if model.precision == "auto" else ():
        if candidate.precision not in offer.ladder:
            continue
        precision = ladder.in_twice_the_bits(offer.ladder, candidate.precision, offer.below)
        if precision is None:
            continue
        twice = msgspec.structs.replace(candidate, precision=precision)
        both = [figures[one.key].cost(objective) for one in (candidate, twice) if one.key in figures]
        if twice.key in parked:
            not_worth.append(Rejected(twice.runtime, twice.device, parked[twice.key].in_full))
        elif len(both) < 2:
            unmeasured[candidate.key] = Ranked(twice, "may be quicker", offer.features)
        elif both[1] < WORTH * both[0]:
            worth.append((twice, offer))
        else:
            why = f"{precision} costs {both[1]:.2f} ({objective}), {candidate.precision} {both[0]:.2f}"
            not_worth.append(Rejected(twice.runtime, twice.device, why))
    return worth, not_worth, unmeasured


def unquantized(source: Source, candidate: Candidate, offer: Offer) -> Ranked:
    precision = "" if source.kind == offer.format else offer.ladder[-1]
    return Ranked(msgspec.structs.replace(candidate, precision=precision), "stands in", offer.features)


def rank(
    model: Model,
    candidates: Sequence[tuple[Candidate, Offer]],
    figures: Mapping[str, Figures],
    objective: Objective,
    host: str,
) -> tuple[Ranked, ...]:
    """Measured candidates by their cost. One that was not measured keeps its place in the prior against them: a lone
    measurement of the second choice says nothing about the first."""
    measured = sorted(
        ((c, o, figures[c.key]) for c, o in candidates if c.key in figures), key=lambda row: row[2].cost(objective)
    )
    after_measured = bool(measured) and candidates[0][0].key in figures
    unmeasured = [(c, o) for c, o in candidates if c.key not in figures]
    by_figures = [
        Ranked(
            c, f"measured on this host: {objective} cost {f.cost(objective):.2f}{told(f)}{warning(c, o)}", o.features, f
        )
        for c, o, f in measured
    ]
    pinned = "pinned by 'runtime'" if model.runtime != "auto" else f"prior of a host of kind '{host}', not measured yet"
    by_prior = [Ranked(c, pinned + warning(c, o), o.features) for c, o in unmeasured]
    return (*by_figures, *by_prior) if after_measured else (*by_prior, *by_figures)


def told(figures: Figures) -> str:
    return f" with {figures.setting}" if figures.setting else ""


def warning(candidate: Candidate, offer: Offer) -> str:
    below = offer.below.get(candidate.precision)
    return f"; warning: {candidate.precision} {below}" if below else ""


def pick(
    decision: Decision, needs: Collection[tuple[str, str]], tried: Mapping[str, str], strict: bool
) -> Ranked | None:
    """The best candidate that was not tried yet and has what a request needs; None when all were tried.

    `needs`: pairs of a feature and the field asking for it; `tried`: what became of a candidate, by key. Raises
    Refused naming the field when the candidates lack it, or when `strict` forbids to go past the first.
    """
    left = [ranked for ranked in decision.ranked if ranked.candidate.key not in tried]
    able = [ranked for ranked in left if lacking(ranked, needs) is None]
    if not left:
        return None
    if not able or (strict and able[0] is not left[0]):
        feature, param = lacking(left[0], needs) or ("", "")
        have = sorted({r.candidate.runtime for r in decision.ranked if feature in r.features})
        remedy = f"served by: {', '.join(have)}" if have else "none of its engines honours it"
        if have and strict:
            remedy += "; routing.strict forbids to go there"
        raise Refused(
            f"'{feature}' is not honoured by {left[0].candidate.runtime}, which serves '{decision.model}'; {remedy}",
            param,
            "unsupported_parameter",
        )
    return able[0]


def lacking(ranked: Ranked, needs: Collection[tuple[str, str]]) -> tuple[str, str] | None:
    return next(((feature, param) for feature, param in needs if feature not in ranked.features), None)


def why_none(decision: Decision, model: Model, runtimes: Collection[str], tried: Mapping[str, str]) -> str:
    """One sentence for a model that nothing can serve."""
    if model.runtime != "auto" and model.runtime not in runtimes:
        return f"unknown runtime '{model.runtime}'; have: {', '.join(sorted(runtimes))}"
    reasons = [f"{key}: {what}" for key, what in tried.items()]
    reasons += [f"{r.runtime}: {r.reason}" for r in decision.rejected if model.runtime in ("auto", r.runtime)]
    return f"no runtime can serve it: {'; '.join(reasons)}"


class Held(msgspec.Struct, frozen=True):
    """A loaded model, for the choice of what must go."""

    key: tuple[str, str]  # model, candidate
    bytes: int
    busy: bool
    used: float  # when last


def evictions(needed: int, budget: int, held: Sequence[Held]) -> list[tuple[str, str]] | None:
    """Which idle models must go, longest unused first, for `needed` bytes to fit; None if not even all would do."""
    room = budget - sum(model.bytes for model in held)
    gone = []
    for model in sorted((model for model in held if not model.busy), key=lambda model: model.used):
        if room >= needed:
            break
        gone.append(model.key)
        room += model.bytes
    return gone if room >= needed else None
