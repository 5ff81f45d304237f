"""The quality gate on trial: `python -m tests.bench.gate_trial [SOURCE] --folder F` judges artifacts of checkpoints
that were damaged, or rewritten without a change, by the whole one, and holds each verdict against a larger measure.

That measure is what the gate does not read: answers of the whole model to other questions, every token of the
vocabulary, to the end; beside it prose, and the end of a long text. An artifact is bad if it misses the bar of its
precision there; reading ends early only where it is bad beyond doubt. Rows are kept in the folder, and not measured
again.
"""

import argparse
import asyncio
import math
import multiprocessing
import os
import pydoc_data.topics
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.config.schema import Limits, Optimize
from enginehouse.optimize.artifact import CannotBuild, Quality, Source, bits
from enginehouse.optimize.ladder import shortfall
from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.quality.answers import end_tokens, in_chat
from enginehouse.optimize.quality.gate import SPARING, SURE, judge
from enginehouse.optimize.quality.reference_runner import Transformers
from enginehouse.optimize.quality.texts import named_tokens, ours
from enginehouse.optimize.sources.chat_template import template_of
from enginehouse.optimize.sources.files import read_json
from enginehouse.optimize.sources.resolve import resolve
from enginehouse.optimize.toolchains import toolchains
from tests.bench.gate_damage import DAMAGE, SAME, TOKENIZER, damaged
from tests.bench.quality import quiet

TASKS = (
    "Explain what {} is about.",
    "Write a short story about {}.",
    "List five facts about {}, with numbers.",
    "Write an e-mail to a friend about {}.",
    "What should a beginner know about {}?",
    "Write a dialogue of two people about {}.",
    "Which years were important for {}, and why?",
    "Write a Python function that has to do with {}.",
)
TOPICS = ("volcanoes", "the French Revolution", "prime numbers", "a lost dog", "chess")
LONG, COMPARED = 1024, 256  # tokens of the long text, and those at its end that are compared
TOPIC = "customization"  # of Python's own manual
CLOSE = 1.5  # times its bar, or a part of it: what chance may decide
BEYOND, FEWEST = 3, 10  # times its bar, after so many answers: bad beyond doubt
ALL_KINDS = ("untouched", "rope", "token", "word", "digit")  # damage that answers may not show: prose is read too
STRIDE = 11  # answers are read in this order, so that the first are of all kinds
WHOLE = (
    "gguf:BF16 gguf:Q8_0 gguf:Q6_K gguf:Q5_K_M gguf:Q4_K_M gguf:Q4_0 openvino:INT8_ASYM openvino:INT4_ASYM_G32_MIXED "
    "openvino:INT4_ASYM_G64 onnx:INT8_B32 onnx:INT4_B32_MIXED mlx:8bit-g64 mlx:mixed_4_6-g32"
)
ELSEWHERE = (
    ("scales moved from matrix to matrix", "openvino:INT8_ASYM"),
    ("neurons reordered", "gguf:Q4_K_M"),
    ("heads reordered", "onnx:INT8_B32"),
    ("layer 5 down 20 % off", "openvino:INT8_ASYM"),
    ("layer 28 down rows permuted", "onnx:INT8_B32"),
    ("rope theta 1.1 times", "mlx:8bit-g64"),
    ("layer 20 v 50 % off", "gguf:Q4_K_M"),
    ("layer 15 gate in 2 bits", "gguf:Q4_K_M"),
    ("digits swapped", "openvino:INT8_ASYM"),
    ("rare tokens forgotten", "gguf:Q4_K_M"),
    ("all norms 5 % off", "mlx:8bit-g64"),
    ("two words forgotten", "gguf:Q6_K"),
    ("a word forgotten", "gguf:Q6_K"),
    ("digits swapped", "gguf:Q6_K"),
    ("digits from 5 on swapped", "gguf:Q6_K"),
)
CHANGES = SAME | DAMAGE | TOKENIZER


class Text(msgspec.Struct, frozen=True):
    kind: str  # "answers", "prose", "long"
    ids: list[int]
    first: int  # compared from here on


class Figures(msgspec.Struct, frozen=True):
    """Of one kind of text, over all tokens of the vocabulary."""

    divergence: float
    divergence_99: float
    worst: float
    far: float  # part of the places where it is above a nat
    agreement: float
    perplexity: float
    places: int

    def excess(self, limits: Limits) -> float:
        """How many times what the bar allows it is off: above one it is bad."""
        return max(
            self.divergence / limits.divergence,
            (1 - self.agreement) / (1 - limits.agreement),
            math.log(self.perplexity) / math.log(limits.perplexity),
        )


class Row(msgspec.Struct, frozen=True):
    damage: str
    artifact: str  # "gguf:Q8_0"
    said: str  # why it is refused, or could not be built; "" if it passes
    quality: Quality | None = None
    truth: dict[str, Figures] = {}
    seconds: float = 0.0  # of the gate, with its reference made before


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("source", nargs="?", default="builtin:smollm2")
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--only", default="", help="rows whose damage or artifact holds this text")
    given = options.parse_args()
    os.environ |= SPARING
    given.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = made(given.source, given.folder / "cache")
    if not (given.folder / "truth.npy").exists():
        in_process(read_source, checkpoint.path, given.folder)
    rows = {(row.damage, row.artifact): row for row in stored(given.folder)}
    for damage, artifact in cases():
        if (damage, artifact) not in rows and given.only in f"{damage} {artifact}":
            rows[damage, artifact] = row = tried(damage, artifact, checkpoint, given.folder)
            with (given.folder / "rows.jsonl").open("ab") as file:
                file.write(msgspec.json.encode(row) + b"\n")
            print(line(row), flush=True)
    table(list(rows.values()))


def cases() -> Iterator[tuple[str, str]]:
    yield from (("untouched", artifact) for artifact in WHOLE.split())
    yield from ELSEWHERE
    yield from ((damage, "gguf:Q8_0") for damage in CHANGES if damage != "untouched")


def stored(folder: Path) -> list[Row]:
    file = folder / "rows.jsonl"
    return [msgspec.json.decode(row, type=Row) for row in file.read_bytes().splitlines()] if file.exists() else []


def made(source: str, cache: Path) -> Source:
    """A checkpoint of 16 bits."""
    found = asyncio.run(locate(source, None, quiet))
    if found.kind != "gguf":
        return found
    from enginehouse.optimize.toolchains.gguf.dequantize import checkpoint_of

    with checkpoint_of(found, cache, quiet) as checkpoint:
        return resolve(checkpoint.path)


def tried(damage: str, artifact: str, whole: Source, folder: Path) -> Row:
    kind, _, precision = artifact.partition(":")
    toolchain, cache, bar = toolchains()[kind], folder / "cache", Optimize().limits(bits(precision))
    source = whole
    if damage != "untouched":
        source = resolve(str(damaged(Path(whole.path), CHANGES[damage], folder / "damaged")))
    try:
        built = asyncio.run(prepare(source, toolchain, precision, cache, quiet, rules=None))
        if not list((cache / "references").glob("*.npz")):
            began = time.monotonic()
            judge(whole, toolchain, precision, Path(built.path), cache, bar, lambda done: None)
            print(f"the reference, and one comparison: {time.monotonic() - began:.1f} s", flush=True)
        began = time.monotonic()
        quality = judge(whole, toolchain, precision, Path(built.path), cache, bar, lambda done: None)
        seconds = time.monotonic() - began
    except CannotBuild as error:
        return Row(damage, artifact, str(error))
    kinds = ("answers", "prose", "long") if any(word in damage for word in ALL_KINDS) else ("answers",)
    truth = {} if damage in TOKENIZER else in_process(measured, kind, built.path, folder, bar, kinds)
    shutil.rmtree(cache / "artifacts" / built.key)
    return Row(damage, artifact, shortfall(quality, precision, Optimize()) or "", quality, truth, round(seconds, 1))


def in_process(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- the larger measure ---


def read_source(checkpoint: str, folder: Path) -> None:
    """Writes its texts, and what it says of each place: log-probabilities of all tokens."""
    import numpy as np
    import tokenizers

    runner, origin = Transformers(Path(checkpoint)), Path(checkpoint)
    tokenizer = tokenizers.Tokenizer.from_file(str(origin / "tokenizer.json"))
    template, named = template_of(origin, read_json(origin / "tokenizer_config.json")), named_tokens(origin)
    questions = [in_chat(template, named, task.format(topic)) for task in TASKS for topic in TOPICS]
    prompts = [tokenizer.encode(question, add_special_tokens=False).ids for question in questions]
    answers = runner.answers(prompts, end_tokens(origin))
    texts = [Text("answers", ask + said, len(ask)) for ask, said in zip(prompts, answers, strict=True)]
    texts += [Text("prose", tokenizer.encode(passage.text).ids, 1) for passage in ours()[::2]]
    manual = tokenizer.encode(pydoc_data.topics.topics[TOPIC]).ids[:LONG]
    texts.append(Text("long", manual, LONG - COMPARED))
    rows = [
        log_softmax(logits[text.first - 1 : -1])
        for text, logits in zip(texts, runner.logits([text.ids for text in texts]), strict=True)
    ]
    (folder / "texts.json").write_bytes(msgspec.json.encode(texts))
    np.save(folder / "truth.npy", np.concatenate(rows))


def measured(kind: str, path: str, folder: Path, bar: Limits, kinds: tuple[str, ...]) -> dict[str, Figures]:
    """What the artifact's own engine computes, held against what the source said."""
    import numpy as np

    texts = msgspec.json.decode((folder / "texts.json").read_bytes(), type=list[Text])
    ends = np.cumsum([len(text.ids) - text.first for text in texts])
    truth, parts = np.load(folder / "truth.npy", mmap_mode="r"), dict[str, list[Any]]()
    answers = [at for at, text in enumerate(texts) if text.kind == "answers"]
    order = [answers[at * STRIDE % len(answers)] for at in range(len(answers))]
    order += [at for at, text in enumerate(texts) if text.kind in kinds and text.kind != "answers"]
    for at, logits in zip(order, toolchains()[kind].logits(Path(path), [texts[at].ids for at in order]), strict=True):
        text, following = texts[at], np.array(texts[at].ids[texts[at].first :])
        known = np.array(truth[ends[at] - len(following) : ends[at]])
        found = log_softmax(logits[text.first - 1 : -1, : known.shape[1]])
        parts.setdefault(text.kind, []).append(compared(known, found, following))
        if (
            text.kind == "answers"
            and len(parts["answers"]) % FEWEST == 0
            and together(parts["answers"]).excess(bar) > BEYOND
        ):
            break
    return {name: together(texts_of_kind) for name, texts_of_kind in parts.items()}


def log_softmax(logits: Any) -> Any:
    import torch

    return torch.from_numpy(logits.copy()).log_softmax(-1).numpy()


def compared(known: Any, own: Any, following: Any) -> tuple[Any, ...]:
    """Of each place: the divergence, whether the source is sure, whether both agree, and what is lost."""
    import torch

    source, artifact = torch.from_numpy(known), torch.from_numpy(own)
    divergence = (source.exp() * (source - artifact)).sum(1, dtype=torch.float64)
    best = source.topk(2).values
    comes = torch.from_numpy(following)[:, None]
    lost = (source.gather(1, comes) - artifact.gather(1, comes))[:, 0]
    sure = best[:, 0] - best[:, 1] >= SURE
    return divergence.numpy(), sure.numpy(), (source.argmax(1) == artifact.argmax(1)).numpy(), lost.numpy()


def together(texts: list[Any]) -> Figures:
    import numpy as np

    divergence, sure, agrees, lost = (np.concatenate(column) for column in zip(*texts, strict=True))
    return Figures(
        float(divergence.mean()),
        float(np.quantile(divergence, 0.99)),
        float(divergence.max()),
        float((divergence > 1).mean()),
        float(agrees[sure].mean()),
        float(np.exp(lost.mean(dtype=np.float64))),
        len(divergence),
    )


# --- the table ---


HEAD = (
    "| damage | artifact | times the bar | true KL, 99th, agreement, perplexity | the gate's | places above a nat "
    "| prose / long | gate | verdict | texts | s |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    if not row.quality:
        return f"| {row.damage} | {row.artifact} | not built: {row.said} |"
    if not row.truth:  # the weights are the source's
        return f"| {row.damage} | {row.artifact} | the gate: {row.said or 'passes'} |"
    answers, gate = row.truth["answers"], row.quality
    others = [f"{row.truth[kind].divergence:.3f}" if kind in row.truth else "" for kind in ("prose", "long")]
    cells = (
        row.damage,
        row.artifact,
        f"{answers.excess(bar_of(row)):.2f}",
        f"{answers.divergence:.4f} {answers.divergence_99:.2f} {answers.agreement:.3f} {answers.perplexity:.3f}",
        f"{gate.divergence:.4f} {gate.divergence_99:.2f} {gate.agreement:.3f} {gate.perplexity:.3f}",
        f"{answers.far:.4f}",
        " / ".join(others),
        "refused" if row.said else "passes",
        verdict(row),
        f"{gate.texts} of {gate.of_texts}",
        f"{row.seconds:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def bar_of(row: Row) -> Limits:
    return Optimize().limits(bits(row.artifact.partition(":")[2]))


def verdict(row: Row) -> str:
    excess = row.truth["answers"].excess(bar_of(row))
    right = (excess > 1) == bool(row.said)
    close = 1 / CLOSE < excess < CLOSE
    return "right" if right else f"{'close: ' if close else ''}false {'refusal' if row.said else 'pass'}"


def table(rows: list[Row]) -> None:
    print(f"\n{HEAD}")
    for row in rows:
        print(line(row))
    judged = [(row, row.quality) for row in rows if row.quality and row.truth]
    texts, seconds = [quality.texts for _, quality in judged], sorted(row.seconds for row, _ in judged)
    print(
        f"\n{len(judged)} judged: {dict(Counter(verdict(row) for row, _ in judged))}; texts read: "
        f"{sum(texts) / len(texts):.1f} of {judged[0][1].of_texts} on average, all of them "
        f"{sum(quality.texts == quality.of_texts for _, quality in judged)} times; comparing took "
        f"{seconds[len(seconds) // 2]:.1f} s in the middle, {seconds[-1]:.1f} s at most"
    )


if __name__ == "__main__":
    main()
