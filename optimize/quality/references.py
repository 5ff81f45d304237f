"""What a source says of the gate's texts, computed once and kept in the cache for all its artifacts."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.locks import Locks
from enginehouse.optimize.quality.answers import best, fitting, prompts_of
from enginehouse.optimize.quality.reference_runner import Runner, load_runner
from enginehouse.optimize.quality.texts import Passage, Tokens, ours, tokens

if TYPE_CHECKING:
    import numpy as np

LIKELIEST = 1024  # tokens kept at each place; all others are one more, together
MADE = "reference.npz"
ROWS = 32  # of logits looked at in one go, in 64 bits


class Reference(msgspec.Struct, frozen=True):
    """At every place that is compared, texts one after another: the likeliest tokens, best first."""

    sequences: list[Tokens]
    has_answers: bool  # the texts are answers that should be given
    vocabulary_size: int  # ids from here on stand for nothing, whatever logits there are
    ids: "np.ndarray[Any, Any]"  # (places, likeliest)
    logprobs: "np.ndarray[Any, Any]"  # (places, likeliest), float32
    rest: "np.ndarray[Any, Any]"  # (places,), the probability of all other tokens
    actual: "np.ndarray[Any, Any]"  # (places,), the log-probability of the token that comes


@contextmanager
def making(cache: Path, key: str) -> Iterator[tuple[Path, Path | None]]:
    """The file of a reference, and a folder to make it in if it is not there: held by this process alone. The lock
    falls with the process, however it ends; the next holder sweeps up what a killed one left behind."""
    file, work = cache / "references" / f"{key}.npz", cache / "references" / f".making-{key}"
    with Locks(cache).alone(f"reference-{key}"):
        if file.exists():
            yield file, None
            return
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            yield file, work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def make(source: Source, runner: str, texts: list[Passage], work: Path, report: Callable[[float], None]) -> None:
    """Writes MADE into `work`, an empty folder. Raises CannotBuild."""
    import numpy as np

    engine = load_runner(source, runner, work)
    sequences, size = tokens(source, texts) if texts else answered(source, engine)
    if not sequences:
        raise CannotBuild(f"the texts of '{source.id}' give nothing to compare; put shorter ones into its eval.jsonl")
    parts: list[tuple[np.ndarray[Any, Any], ...]] = []  # of each sequence
    for sequence, found in zip(sequences, engine.logits([one.ids for one in sequences]), strict=True):
        size = min(size, found.shape[-1])
        part = []
        for rows, following in blocks(sequence, found, size):
            if not np.isfinite(rows).all():
                raise CannotBuild(f"source '{source.id}' holds weights that are no numbers; download it again")
            part.append(likeliest(rows, following))
        parts.append(tuple(np.concatenate(column) for column in zip(*part, strict=True)))
        report(len(parts) / len(sequences))
    if not texts:
        kept = best(sequences, [float(actual.mean()) for *_, actual in parts])
        sequences, parts = [sequences[at] for at in kept], [parts[at] for at in kept]
    ids, logprobs, rest, actual = (np.concatenate(column) for column in zip(*parts, strict=True))
    np.savez(
        work / MADE,
        sequences=np.frombuffer(msgspec.json.encode(sequences), np.uint8),
        has_answers=np.array(any(text.prompt for text in texts)),
        vocabulary=np.array(size),
        ids=ids,
        logprobs=logprobs,
        rest=rest,
        actual=actual,
    )


def answered(source: Source, engine: Runner) -> tuple[list[Tokens], int]:
    """The model's own answers; where it gives none, texts of ours."""
    prompts = prompts_of(source)
    asked = fitting(prompts, source.context_length)
    said = engine.answers(asked, prompts.ends) if asked else []
    if not said:
        return tokens(source, ours())
    # A model may say ids that stand for nothing: with random weights it does.
    known = [list(takewhile(lambda id: id < prompts.vocabulary_size, answer)) for answer in said]
    both = zip(asked, known, strict=True)
    return [Tokens(prompt + answer, len(prompt)) for prompt, answer in both if answer], prompts.vocabulary_size


def blocks(
    sequence: Tokens, found: "np.ndarray[Any, Any]", vocabulary: int
) -> "Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]":
    """Stretches of the places compared: logits in 64 bits, (rows, vocabulary), and the token that comes at each."""
    import numpy as np

    for start in range(sequence.first, len(sequence.ids), ROWS):
        following = np.array(sequence.ids[start : start + ROWS])
        yield found[start - 1 : start - 1 + len(following), :vocabulary].astype(np.float64), following


def likeliest(rows: "np.ndarray[Any, Any]", following: "np.ndarray[Any, Any]") -> "tuple[np.ndarray[Any, Any], ...]":
    import numpy as np

    logprobs = log_softmax(rows)
    count = min(LIKELIEST, rows.shape[1])
    ids = np.argpartition(-logprobs, count - 1, axis=1)[:, :count]
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logprobs, ids, 1), axis=1, kind="stable"), 1)
    best = np.take_along_axis(logprobs, ids, 1)
    rest = np.maximum(1 - np.exp(best).sum(1), 0)
    actual = np.take_along_axis(logprobs, following[:, None], 1)[:, 0]
    return ids.astype(np.int32), best.astype(np.float32), rest, actual


def log_softmax(rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    import numpy as np

    highest = rows.max(1, keepdims=True)
    shifted: np.ndarray[Any, Any] = rows - highest
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def load(file: Path) -> Reference:
    import numpy as np

    with np.load(file, allow_pickle=False) as stored:
        sequences = msgspec.json.decode(stored["sequences"].tobytes(), type=list[Tokens])
        columns = (stored[name] for name in ("ids", "logprobs", "rest", "actual"))
        return Reference(sequences, bool(stored["has_answers"]), int(stored["vocabulary"]), *columns)
