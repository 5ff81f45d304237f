"""The quality gate: how far an artifact is from its source. `python -m enginehouse.optimize.quality.gate` does one half
of it in a process of its own: runs the source, or the artifact by its own engine."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Quality, Report, Source, Toolchain
from enginehouse.optimize.child_process import Result, carry_out, run_blocking
from enginehouse.optimize.quality.reference_runner import choose_runner
from enginehouse.optimize.quality.references import MADE, Reference, blocks, load, log_softmax, make, making
from enginehouse.optimize.quality.texts import Passage, digest, passages
from enginehouse.optimize.toolchains import toolchains

if TYPE_CHECKING:
    import numpy as np

SPARING = {"GOMP_SPINCOUNT": "1000"}  # threads that wait leave the processor to what is being served
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


class ReferenceMade(msgspec.Struct, frozen=True, tag="reference-made"): ...


class Compared(msgspec.Struct, frozen=True, tag="compared"):
    quality: Quality


Order = MakeReference | Compare


def judge(
    source: Source, toolchain: Toolchain, precision: str, path: Path, cache: Path, report: Callable[[float], None]
) -> Quality:
    """`path`: what the engine is given. Raises CannotBuild where either side does not compute numbers."""
    runner, texts = choose_runner(source), passages(source)
    with making(cache, f"{source.fingerprint}-{digest(texts)}-{runner}") as (file, work):
        if work:
            what = f"'{source.id}'"
            gate_process(
                what, MakeReference(source, runner, texts, str(work)), ReferenceMade, lambda done: report(done / 2)
            )
            (work / MADE).rename(file)
        what = f"{toolchain.format} {precision} of '{source.id}'"
        order = Compare(toolchain.format, str(path), str(file), runner, what)
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
    import numpy as np

    sequences, size = reference.sequences, reference.vocabulary_size
    engine = toolchains()[order.format].logits(Path(order.path), [sequence.ids for sequence in sequences])
    divergence = agreed = lost = 0.0  # nats, places, nats
    compared = 0  # places
    for done, (sequence, logits) in enumerate(zip(sequences, engine, strict=True)):
        if logits.shape[-1] < size:
            raise CannotBuild(f"{order.what} has logits for {logits.shape[-1]} tokens, its source for {size}")
        for rows, following in blocks(sequence, logits, size):
            if not np.isfinite(rows).all():
                raise CannotBuild(f"{order.what} does not compute numbers; take another precision")
            logprobs = log_softmax(rows)
            here = slice(compared, compared := compared + len(following))
            divergence += float(divergences(reference, here, logprobs).sum())
            agreed += int((logprobs.argmax(1) == reference.ids[here, 0]).sum())
            lost += float((reference.actual[here] - np.take_along_axis(logprobs, following[:, None], 1)[:, 0]).sum())
        report((done + 1) / len(sequences))
    perplexity = math.exp(lost / compared)
    mean = max(divergence / compared, 0.0)  # rounding may leave a hair less than none
    return Quality(round(mean, 6), round(agreed / compared, 6), round(perplexity, 6), compared, order.runner)


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
