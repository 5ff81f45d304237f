"""The quality gate: how far an artifact is from its source. `python -m enginehouse.optimize.quality.gate` does one half
of it in a process of its own: runs the source, or the artifact by its own engine."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Quality, Source, Toolchain
from enginehouse.optimize.child_process import begin
from enginehouse.optimize.quality.reference_runner import runner
from enginehouse.optimize.quality.references import MADE, Reference, blocks, load, log_softmax, make, making
from enginehouse.optimize.quality.texts import Passage, digest, passages
from enginehouse.optimize.toolchains import toolchains

if TYPE_CHECKING:
    import numpy as np

SPARING = {"GOMP_SPINCOUNT": "1000"}  # threads that wait leave the processor to what is being served
SMALLEST = 1e-12  # a probability, where rounding may leave none


class Refer(msgspec.Struct, frozen=True, tag="refer"):
    """Run the source and keep what it says."""

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


class Advance(msgspec.Struct, frozen=True, tag="advance"):
    fraction: float


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    quality: Quality | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    message: str
    environment: bool


Order = Refer | Compare
Report = Advance | Finished | Failed


def judge(
    source: Source, toolchain: Toolchain, precision: str, path: Path, cache: Path, report: Callable[[float], None]
) -> Quality:
    """`path`: what the engine is given. Raises CannotBuild where either side does not compute numbers."""
    name, texts = runner(source), passages(source)
    with making(cache, f"{source.fingerprint}-{digest(texts)}-{name}") as (file, work):
        if work:
            run(Refer(source, name, texts, str(work)), lambda fraction: report(fraction / 2))
            (work / MADE).rename(file)
        what = f"{toolchain.format} {precision} of '{source.id}'"
        order = Compare(toolchain.format, str(path), str(file), name, what)
        finished = run(order, lambda fraction: report((1 + fraction) / 2))  # within: nobody prunes the reference
    assert finished.quality
    return finished.quality


def run(order: Order, report: Callable[[float], None]) -> Finished:
    """One child process from start to its last word."""
    last: Report | None = None
    command = [sys.executable, "-m", "enginehouse.optimize.quality.gate"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=SPARING | os.environ) as child:
        assert child.stdin and child.stdout
        child.stdin.write(msgspec.json.encode(order) + b"\n")
        child.stdin.flush()  # and stays open: the child ends when it closes, with this process
        for line in child.stdout:
            last = msgspec.json.decode(line, type=Report)
            if isinstance(last, Advance):
                report(last.fraction)
    match last:
        case Finished():
            return last
        case Failed(message, environment):
            raise CannotBuild(message, environment)
        case _:
            what = order.what if isinstance(order, Compare) else f"'{order.source.id}'"
            status = child.returncode
            reason = f"the process that ran {what} for the quality gate ended with status {status}; see the log"
            raise CannotBuild(reason, environment=status < 0)


def main() -> None:
    order, send = begin(Order)
    try:
        match order:
            case Refer(source, name, texts, work):
                make(source, name, texts, Path(work), lambda fraction: send(Advance(fraction)))
                send(Finished())
            case Compare():
                send(Finished(compare(order, load(Path(order.reference)), lambda fraction: send(Advance(fraction)))))
    except CannotBuild as error:
        send(Failed(str(error), error.environment))
    except MemoryError:
        send(Failed("the quality gate ran out of memory", environment=True))


def compare(order: Compare, reference: Reference, report: Callable[[float], None]) -> Quality:
    import numpy as np

    sequences, size = reference.sequences, reference.vocabulary
    engine = toolchains()[order.format].logits(Path(order.path), [sequence.ids for sequence in sequences])
    divergence = agreed = lost = 0.0  # nats, places, nats
    place = 0
    for done, (sequence, logits) in enumerate(zip(sequences, engine, strict=True)):
        if logits.shape[-1] < size:
            raise CannotBuild(f"{order.what} has logits for {logits.shape[-1]} tokens, its source for {size}")
        for rows, following in blocks(sequence, logits, size):
            if not np.isfinite(rows).all():
                raise CannotBuild(f"{order.what} does not compute numbers; take another precision")
            logprobs = log_softmax(rows)
            here = slice(place, place := place + len(following))
            divergence += float(divergences(reference, here, logprobs).sum())
            agreed += int((logprobs.argmax(1) == reference.ids[here, 0]).sum())
            lost += float((reference.actual[here] - np.take_along_axis(logprobs, following[:, None], 1)[:, 0]).sum())
        report((done + 1) / len(sequences))
    perplexity = math.exp(lost / place)
    mean = max(divergence / place, 0.0)  # rounding may leave a hair less than none
    return Quality(round(mean, 6), round(agreed / place, 6), round(perplexity, 6), place, order.runner)


def divergences(reference: Reference, here: slice, logprobs: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """KL divergence at each place over the likeliest tokens of the source and all others as one: a little less than
    over all tokens singly. Nats."""
    import numpy as np

    kept, theirs = reference.logprobs[here], np.take_along_axis(logprobs, reference.ids[here], 1)
    rest, their_rest = reference.rest[here], 1 - np.exp(theirs).sum(1)
    of_rest = rest * np.log(np.maximum(rest, SMALLEST) / np.maximum(their_rest, SMALLEST))
    return np.asarray((np.exp(kept) * (kept - theirs)).sum(1) + of_rest)


if __name__ == "__main__":
    main()
