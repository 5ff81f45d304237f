"""What a source says of the gate's texts, computed once and kept in the cache for all its artifacts."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.locks import Locks
from enginehouse.optimize.quality.reference_runner import logits
from enginehouse.optimize.quality.texts import Passage, Tokens, tokens

if TYPE_CHECKING:
    import numpy as np

LIKELIEST = 1024  # tokens kept at each place; all others are one more, together
MADE = "reference.npz"
ROWS = 32  # of logits looked at in one go, in 64 bits


class Reference(msgspec.Struct, frozen=True):
    """At every place that is compared, texts one after another: the likeliest tokens, best first."""

    sequences: list[Tokens]
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

    sequences, size = tokens(source, texts)
    if not sequences:
        raise CannotBuild(f"the texts of '{source.id}' give nothing to compare; put shorter ones into its eval.jsonl")
    parts: list[tuple[np.ndarray[Any, Any], ...]] = []
    all_ids = [sequence.ids for sequence in sequences]
    for done, (sequence, found) in enumerate(zip(sequences, logits(source, runner, all_ids, work), strict=True)):
        size = min(size, found.shape[-1])
        for rows, following in blocks(sequence, found, size):
            if not np.isfinite(rows).all():
                raise CannotBuild(f"source '{source.id}' holds weights that are no numbers; download it again")
            parts.append(likeliest(rows, following))
        report((done + 1) / len(sequences))
    ids, logprobs, rest, actual = (np.concatenate(column) for column in zip(*parts, strict=True))
    np.savez(
        work / MADE,
        sequences=np.frombuffer(msgspec.json.encode(sequences), np.uint8),
        vocabulary=np.array(size),
        ids=ids,
        logprobs=logprobs,
        rest=rest,
        actual=actual,
    )


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
        return Reference(sequences, int(stored["vocabulary"]), *columns)
