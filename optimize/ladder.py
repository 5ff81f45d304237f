"""The precision ladder: from a toolchain's smallest artifact to its most exact, until one passes the quality gate.

`precision: auto` builds the lowest rung that has not failed; one that fails is thrown away and is passed over from then
on, because its figures stay. A pinned precision stands on no ladder: below the bar it is served with a warning, or not.
"""

from collections.abc import Mapping, Sequence

from enginehouse.config.schema import Optimize
from enginehouse.optimize.artifact import Quality, Source, Toolchain, bits
from enginehouse.optimize.store import Store


def shortfall(quality: Quality, precision: str, rules: Optimize) -> str | None:
    """By how much an artifact misses the bar of its precision (the toolchain's own name), or None."""
    limits, accuracy = rules.limits(bits(precision)), 1.0 if quality.accuracy is None else quality.accuracy
    misses = [
        f"{name} {value:.3g} is {side} {limit:g}"
        for name, value, limit, side, missed in (
            ("divergence", quality.divergence, limits.divergence, "above", quality.divergence > limits.divergence),
            ("agreement", quality.agreement, limits.agreement, "below", quality.agreement < limits.agreement),
            ("perplexity", quality.perplexity, limits.perplexity, "above", quality.perplexity > limits.perplexity),
            ("accuracy", accuracy, limits.accuracy, "below", accuracy < limits.accuracy),
        )
        if missed
    ]
    return f"is below the quality bar: {', '.join(misses)}" if misses else None


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
