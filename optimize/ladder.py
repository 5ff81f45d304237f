"""The precision ladder: from a toolchain's smallest artifact to its most exact, until one passes the quality gate.

`precision: auto` builds the lowest rung that has not failed; one that fails is thrown away and is passed over from then
on, because its figures stay. A pinned precision stands on no ladder: below the bar it is served with a warning, or not.

Of an architecture that nobody has compared with transformers, the most exact artifact is judged before any other is
built or served: it shows whether the conversion is right. The verdict holds for all sources of that kind.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from enginehouse.config.schema import Optimize
from enginehouse.optimize.artifact import Quality, Source, Toolchain, bits
from enginehouse.optimize.sources.gguf_checkpoint import described
from enginehouse.optimize.store import Store

NAMES = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")  # in a config: of no consequence


def shortfall(quality: Quality, precision: str, rules: Optimize) -> str | None:
    """By how much an artifact misses the bar of its precision (the toolchain's own name), or None."""
    limits, accuracy = rules.limits(bits(precision)), 1.0 if quality.accuracy is None else quality.accuracy
    misses = [
        f"{name} {value:.3g} is {side} {limit:g}"
        for name, value, limit, side, missed in (
            ("divergence", quality.divergence, limits.divergence, "above", quality.divergence > limits.divergence),
            (
                "worst divergence in a hundred",
                quality.divergence_99,
                limits.worst,
                "above",
                quality.divergence_99 > limits.worst,
            ),
            ("agreement", quality.agreement, limits.agreement, "below", quality.agreement < limits.agreement),
            ("perplexity", quality.perplexity, limits.perplexity, "above", quality.perplexity > limits.perplexity),
            ("accuracy", accuracy, limits.accuracy, "below", accuracy < limits.accuracy),
        )
        if missed
    ]
    return f"is below the quality bar: {', '.join(misses)}" if misses else None


def family(toolchain: Toolchain, source: Source) -> str:
    """Sources that are alike in all that a converter may get wrong: all of the config but its sizes, and the tools."""
    config = described(source) if source.kind in ("checkpoint", "gguf") else {}
    told = [source.kind, source.architecture, shape(config), toolchain.versions()]
    digest = hashlib.blake2b(msgspec.json.encode(told, order="deterministic"), digest_size=10).hexdigest()
    return f"{toolchain.format}-{source.architecture}-{digest}"


def shape(value: Any) -> Any:
    """Numbers are sizes; how many entries a list has, too."""
    match value:
        case dict():
            return {key: shape(inner) for key, inner in value.items() if key not in NAMES}
        case list():
            return sorted({msgspec.json.encode(shape(inner), order="deterministic").decode() for inner in value})
        case bool() | str() | None:
            return value
        case _:
            return 0


def wrong(quality: Quality, toolchain: Toolchain, source: Source) -> str:
    """By how much the most exact artifact misses its source; "" where it does not."""
    if source.kind == "checkpoint" and quality.reference != "transformers":
        return "cannot be compared with transformers: install enginehouse[optimize], or free the memory that it needs"
    return shortfall(quality, toolchain.exact, Optimize()) or ""


def not_right(toolchain: Toolchain, source: Source, wrong: str) -> str:
    return f"'{source.architecture}' as {toolchain.format} {toolchain.exact} {wrong}"


def failed(toolchain: Toolchain, source: Source, pinned: str, store: Store, rules: Optimize) -> dict[str, str]:
    """The rungs, and the `pinned` precision, whose artifacts failed the gate, kept or not, and by how much."""
    found: dict[str, str] = {}
    names = [own for name, own in toolchain.precisions.items() if name.lower() == pinned.lower()]
    for precision in {*toolchain.ladder, *names}:
        quality = store.quality(toolchain.recipe(source, precision).key)
        if quality and (why := shortfall(quality, precision, rules)):
            found[precision] = why
    return found


def lowest(ladder: Sequence[str], failures: Mapping[str, str]) -> str | None:
    """The rung to build next; None when all have failed."""
    return next((rung for rung in ladder if rung not in failures), None)


def passed_over(ladder: Sequence[str], precision: str, failures: Mapping[str, str]) -> list[str]:
    """A sentence for every rung below this one."""
    return [f"{rung} {failures[rung]}" for rung in ladder[: ladder.index(precision)]]


def in_twice_the_bits(ladder: Sequence[str], precision: str, failures: Mapping[str, str]) -> str | None:
    """The lowest rung that may be quicker for being simpler to compute with."""
    return next((rung for rung in ladder if bits(rung) >= 2 * bits(precision) and rung not in failures), None)
