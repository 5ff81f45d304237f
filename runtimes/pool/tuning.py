"""Which setting of an engine is best on this host, by measuring all of them in turn."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from enginehouse.runtimes.contract import USUAL, Setting
from enginehouse.runtimes.pool.routing import WORTH, Figures, Objective

ROUNDS = 2  # a host's speed drifts: of two the better counts


async def timed_in_turn(
    settings: Sequence[Setting], timed: Callable[[Setting], Awaitable[Figures]], objective: Objective
) -> dict[str, Figures]:
    """By name, of the usual one and these."""
    found = dict[str, Figures]()
    for _ in range(ROUNDS):
        for setting in (USUAL, *settings):
            figures = await timed(setting)
            before = found.get(setting.name, figures)
            found[setting.name] = min(before, figures, key=lambda one: one.cost(objective))
    return found


def best(found: Mapping[str, Figures], objective: Objective) -> Figures:
    """The usual one's unless another is worth it."""
    winner = min(found.values(), key=lambda one: one.cost(objective))
    usual = found[USUAL.name]
    return winner if winner.cost(objective) < WORTH * usual.cost(objective) else usual
