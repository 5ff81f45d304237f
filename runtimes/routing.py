"""Decides which runtime serves a model, and says why. No I/O, no clock, no await."""

import msgspec

from config.schema import Model
from optimize.recipe import Source

# Without measurements, the order of preference. Echo never wins over an engine: it loads nothing an engine could.
PRIOR = ("llamacpp", "echo")
# `precision: auto` without a quality gate: what costs little enough. Small models lose more to four bits.
SMALL_MODEL_PARAMETERS = 1_000_000_000
AUTO_SMALL, AUTO_LARGE = "int8", "int4"


class Offer(msgspec.Struct, frozen=True):
    """What one runtime could do on this host, as found out by the pool."""

    runtime: str
    format: str
    unavailable: str | None
    precisions: dict[str, str] = {}  # of the toolchain that makes its format: accepted name -> own name
    cannot_build: str | None = None  # why that toolchain cannot make an artifact of this source


class Candidate(msgspec.Struct, frozen=True):
    runtime: str
    format: str
    precision: str  # the toolchain's own name; "" = the source as it is


class Rejected(msgspec.Struct, frozen=True):
    runtime: str
    reason: str


class Choice(msgspec.Struct, frozen=True):
    candidate: Candidate | None
    reason: str
    rejected: list[Rejected]


def choose(model: Model, source: Source, offers: list[Offer]) -> Choice:
    """The best candidate by the prior, with a sentence for every runtime that is none."""
    if model.runtime != "auto" and model.runtime not in {offer.runtime for offer in offers}:
        have = ", ".join(sorted(offer.runtime for offer in offers))
        return Choice(None, f"unknown runtime '{model.runtime}'; have: {have}", [])
    candidates: list[Candidate] = []
    rejected: list[Rejected] = []
    for offer in sorted(offers, key=lambda o: PRIOR.index(o.runtime) if o.runtime in PRIOR else len(PRIOR)):
        verdict = judge(model, source, offer)
        if isinstance(verdict, Candidate):
            candidates.append(verdict)
        else:
            rejected.append(verdict)
    if not candidates:
        reasons = "; ".join(f"{r.runtime}: {r.reason}" for r in rejected if model.runtime in ("auto", r.runtime))
        return Choice(None, f"no runtime can serve it: {reasons}", rejected)
    reason = "pinned by 'runtime'" if model.runtime != "auto" else "first of the prior that can"
    return Choice(candidates[0], reason, rejected)


def judge(model: Model, source: Source, offer: Offer) -> Candidate | Rejected:
    if model.runtime not in ("auto", offer.runtime):
        return Rejected(offer.runtime, f"'runtime' is pinned to '{model.runtime}'")
    if offer.unavailable:
        return Rejected(offer.runtime, offer.unavailable)
    if source.kind == offer.format and model.precision == "auto":
        return Candidate(offer.runtime, offer.format, "")
    if source.kind not in ("checkpoint", offer.format) or not offer.precisions:
        return Rejected(offer.runtime, f"loads {offer.format}, which cannot be made of '{source.id}'")
    wanted = precision(model, source)
    own = {name.lower(): value for name, value in offer.precisions.items()}.get(wanted.lower())
    if own is None:
        return Rejected(offer.runtime, f"unknown precision '{wanted}'; have: auto, {', '.join(offer.precisions)}")
    if offer.cannot_build:
        return Rejected(offer.runtime, offer.cannot_build)
    return Candidate(offer.runtime, offer.format, own)


def precision(model: Model, source: Source) -> str:
    if model.precision != "auto":
        return model.precision
    return AUTO_SMALL if source.parameters < SMALL_MODEL_PARAMETERS else AUTO_LARGE
