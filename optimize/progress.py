"""How far a model is on its way to being served, and how long that will still take."""

from collections.abc import Iterable, Mapping

import msgspec

from enginehouse.optimize.artifact import Manifest, Source, Toolchain, bytes_as_checkpoint

STAGES = ("fetch", "convert", "quantize", "check", "load")
# Before anything is known of the source: the share of each stage, in seconds of a small model.
UNKNOWN = {"fetch": 30.0, "convert": 5.0, "quantize": 10.0, "check": 3.0, "load": 2.0}
LOAD_SECONDS_PER_GIB = 2.0
DEQUANTIZE_SECONDS_PER_GIB = 12.0  # of 16 bits, which a .gguf file is made into
LEAST_SECONDS = 0.1  # of a stage that is expected at all
GATE_SECONDS = 5.0  # of the quality gate whatever the source: imports
ALIKE = 4  # times larger or smaller a source may be that tells of another
TRUST = 0.1  # of the whole: how much must be done for the pace so far to weigh as much as the estimate


class Progress(msgspec.Struct, frozen=True):
    stage: str
    percent: float  # of the whole way; never falls, 100 at its end
    seconds_left: float


class LoadProgress:
    """From the stages as they are reported to the whole: estimated seconds, corrected by the pace so far.

    The network says nothing of the processor, so what is fetched has a pace of its own.
    """

    def __init__(self, estimates: Mapping[str, float], now: float) -> None:
        """`estimates` in seconds by stage; a stage that is not among them is not expected. `now` is any clock's."""
        self._began = self._stage_began = now
        self._stage, self._fraction, self._percent = "", 0.0, 0.0
        self._fetching = 0.0  # seconds it took
        self._estimates = at_least(estimates)

    def expect(self, estimates: Mapping[str, float], now: float) -> None:
        """Other estimates, once the source is known; what was fetched took what it took."""
        fetching = self._fetching + (now - self._stage_began if self._stage == "fetch" else 0.0)
        self._estimates = at_least({"fetch": fetching, **estimates} if fetching else estimates)

    def report(self, stage: str, fraction: float, now: float) -> Progress:
        """Where it is now, from a stage and the fraction of it that is done."""
        if stage != self._stage:
            if self._stage == "fetch":
                self._fetching += now - self._stage_began
            if self._stage:
                self._stage_began = now
            self._stage, self._fraction = stage, 0.0
        self._fraction = max(self._fraction, fraction)
        whole = sum(self._estimates.values())
        done = sum(self._estimates[before] for before in self._before(stage))
        done += self._estimates.get(stage, 0.0) * self._fraction
        self._percent = max(self._percent, min(100.0, 100 * done / whole) if whole else 0.0)
        return Progress(stage, self._percent, self._seconds_left(now))

    def at(self, now: float) -> Progress:
        """Where it is, nothing having been reported since."""
        return self.report(self._stage or "start", self._fraction, now)

    def end(self) -> Progress:
        """Everything is done, whatever was reported last."""
        self._percent = 100.0
        return Progress(self._stage, 100.0, 0.0)

    def _before(self, stage: str) -> list[str]:
        if stage not in STAGES:
            return []
        return [before for before in STAGES[: STAGES.index(stage)] if before in self._estimates]

    def _seconds_left(self, now: float) -> float:
        here = now - self._stage_began
        work = {stage: seconds for stage, seconds in self._estimates.items() if stage != "fetch"}
        if self._stage == "fetch":
            estimated = self._estimates.get("fetch", 0.0)
            return (1 - self._fraction) * (here / self._fraction if self._fraction else estimated) + sum(work.values())
        done = sum(work[stage] for stage in self._before(self._stage) if stage in work)
        done += work.get(self._stage, 0.0) * self._fraction
        whole, spent = sum(work.values()), now - self._began - self._fetching
        prior = TRUST * whole
        pace = (spent + prior) / (done + prior) if whole else 1.0
        return (whole - done) * pace


def at_least(estimates: Mapping[str, float]) -> dict[str, float]:
    """In the order of the stages, none of them nothing."""
    return {stage: max(estimates[stage], LEAST_SECONDS) for stage in STAGES if stage in estimates}


def estimate(toolchain: Toolchain, source: Source, precision: str, built: Iterable[Manifest]) -> dict[str, float]:
    """Seconds by stage from the source to a loaded model. What was `built` here of a source of about that size says
    more than the prior, and the same precision more than another."""
    like = [manifest for manifest in built if tells_of(manifest, toolchain) and alike(manifest, source)]
    like.sort(key=lambda manifest: (manifest.recipe.precision != precision, distance(manifest, source)))
    if like:
        scale = bytes_as_checkpoint(source) / bytes_as_checkpoint(like[0].source)
        seconds = {stage: spent * scale for stage, spent in like[0].seconds.items()}
    else:
        gib = bytes_as_checkpoint(source) / 2**30
        seconds = {stage: each * gib for stage, each in toolchain.seconds_per_gib.items()}
        dequantizing = DEQUANTIZE_SECONDS_PER_GIB * gib if toolchain.dequantizes(source) else 0.0
        seconds["convert"] += toolchain.start_seconds + dequantizing
        seconds["check"] = seconds.get("check", 0.0) + GATE_SECONDS
    return seconds | {"load": LOAD_SECONDS_PER_GIB * source.bytes / 2**30}


def tells_of(manifest: Manifest, toolchain: Toolchain) -> bool:
    """Not what was made of an export that was there: it says nothing of how long that takes."""
    whole = not toolchain.export or manifest.source.kind == toolchain.format or "convert" in manifest.seconds
    return manifest.recipe.format == toolchain.format and whole


def alike(manifest: Manifest, source: Source) -> bool:
    return source.bytes > 0 and manifest.source.bytes > 0 and distance(manifest, source) <= ALIKE


def distance(manifest: Manifest, source: Source) -> float:
    """How many times larger one source is than the other."""
    ratio = bytes_as_checkpoint(manifest.source) / bytes_as_checkpoint(source)
    return max(ratio, 1 / ratio)
