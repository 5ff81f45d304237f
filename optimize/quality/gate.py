"""The quality gate: how far an artifact is from its source. `python -m enginehouse.optimize.quality.gate` does one half
of it in a process of its own: runs the source, or the artifact by its own engine."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.config.schema import Limits
from enginehouse.optimize.artifact import CannotBuild, Quality, Report, Source, Toolchain
from enginehouse.optimize.child_process import Result, carry_out, run_blocking
from enginehouse.optimize.quality.answers import VERSION
from enginehouse.optimize.quality.evidence import Evidence, Places
from enginehouse.optimize.quality.reference_runner import choose_runner
from enginehouse.optimize.quality.references import MADE, Reference, blocks, load, log_softmax, make, making
from enginehouse.optimize.quality.texts import Passage, digest, passages
from enginehouse.optimize.toolchains import toolchains

if TYPE_CHECKING:
    import numpy as np

SPARING = {"GOMP_SPINCOUNT": "1000"}  # threads that wait leave the processor to what is being served
SURE = 0.5  # nats that the source's first choice leads by: below it a user would not notice which one comes
SMALLEST = 1e-12  # a probability, where rounding may leave none


class MakeReference(msgspec.Struct, frozen=True, tag="make-reference"):
    """Run the source and keep what it computes."""

    source: Source
    runner: str
    texts: list[Passage]
    work: str  # an empty folder


class Compare(msgspec.Struct, frozen=True, tag="compare"):
    """Run the artifact and compare."""

    format: str
    path: str  # what the engine is given
    reference: str  # the file
    runner: str  # of the source
    what: str  # the artifact's name in messages
    bar: Limits


class ReferenceMade(msgspec.Struct, frozen=True, tag="reference-made"): ...


class Compared(msgspec.Struct, frozen=True, tag="compared"):
    quality: Quality


Order = MakeReference | Compare


def judge(
    source: Source,
    toolchain: Toolchain,
    precision: str,
    path: Path,
    cache: Path,
    bar: Limits,
    report: Callable[[float], None],
) -> Quality:
    """`path`: what the engine is given. `bar`: what it must reach, and so how much is to be read. Raises CannotBuild
    where either side does not compute numbers."""
    runner, texts = choose_runner(source), passages(source)
    with making(cache, f"{source.fingerprint}-{digest(texts) if texts else VERSION}-{runner}") as (file, work):
        if work:
            what = f"'{source.id}'"
            gate_process(
                what, MakeReference(source, runner, texts, str(work)), ReferenceMade, lambda done: report(done / 2)
            )
            (work / MADE).rename(file)
        what = f"{toolchain.format} {precision} of '{source.id}'"
        order = Compare(toolchain.format, str(path), str(file), runner, what, bar)
        # within: nobody prunes the reference
        return gate_process(what, order, Compared, lambda done: report((1 + done) / 2)).quality


def gate_process(what: str, order: Order, result: type[Result], report: Callable[[float], None]) -> Result:
    """`what` is run in it."""
    return run_blocking(
        "enginehouse.optimize.quality.gate",
        order,
        result,
        lambda stage, fraction: report(fraction),
        f"the process that ran {what} for the quality gate",
        SPARING | os.environ,
    )


def work(order: Order, report: Report) -> ReferenceMade | Compared:
    def advance(fraction: float) -> None:
        report("check", fraction)

    try:
        match order:
            case MakeReference(source, runner, texts, folder):
                make(source, runner, texts, Path(folder), advance)
                return ReferenceMade()
            case Compare():
                return Compared(compare(order, load(Path(order.reference)), advance))
    except MemoryError as error:
        raise CannotBuild("the quality gate ran out of memory", environment=True) from error


def compare(order: Compare, reference: Reference, report: Callable[[float], None]) -> Quality:
    """Reads texts until one figure surely misses its bar, or to the end."""
    import numpy as np

    sequences, size = reference.sequences, reference.vocabulary_size
    engine = toolchains()[order.format].logits(Path(order.path), [sequence.ids for sequence in sequences])
    evidence = Evidence(order.bar, reference.has_answers)
    compared = 0  # places
    for done, (sequence, logits) in enumerate(zip(sequences, engine, strict=True), 1):
        if logits.shape[-1] < size:
            raise CannotBuild(f"{order.what} has logits for {logits.shape[-1]} tokens, its source for {size}")
        parts = []
        for rows, following in blocks(sequence, logits, size):
            if not np.isfinite(rows).all():
                raise CannotBuild(f"{order.what} does not compute numbers; take another precision")
            here = slice(compared, compared := compared + len(following))
            parts.append(places(reference, here, log_softmax(rows), following))
        evidence.add(Places(*(np.concatenate(column) for column in zip(*parts, strict=True))))
        report(done / len(sequences))
        if evidence.is_bad():
            break
    return evidence.quality(len(sequences), order.runner)


def places(
    reference: Reference, here: slice, logprobs: "np.ndarray[Any, Any]", following: "np.ndarray[Any, Any]"
) -> "tuple[np.ndarray[Any, Any], ...]":
    """The columns of Places."""
    import numpy as np

    ids, known = reference.ids[here], reference.logprobs[here]
    chosen = logprobs.argmax(1)
    sure = known[:, 0] - known[:, 1] >= SURE if known.shape[1] > 1 else np.ones(len(ids), bool)
    lost = reference.actual[here] - np.take_along_axis(logprobs, following[:, None], 1)[:, 0]
    return (
        divergences(reference, here, logprobs),
        sure,
        chosen == ids[:, 0],
        lost,
        chosen == following,
        ids[:, 0] == following,
    )


def divergences(reference: Reference, here: slice, logprobs: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """KL divergence at each place over the likeliest tokens of the source and all others as one: a little less than
    over all tokens singly. Nats."""
    import numpy as np

    of_source, of_artifact = reference.logprobs[here], np.take_along_axis(logprobs, reference.ids[here], 1)
    rest, artifact_rest = reference.rest[here], 1 - np.exp(of_artifact).sum(1)
    of_rest = rest * np.log(np.maximum(rest, SMALLEST) / np.maximum(artifact_rest, SMALLEST))
    return np.asarray((np.exp(of_source) * (of_source - of_artifact)).sum(1) + of_rest)


if __name__ == "__main__":
    carry_out(Order, work)
