"""What engines decide alike about KV caches: how many tokens they hold, whether they fit, what two prompts share."""

import sys
from collections.abc import Callable
from typing import Any

from enginehouse.optimize.memory import free_memory
from enginehouse.runtimes.contract import Load

DEFAULT_TOKENS = 16384  # for all slots together, where one context needs no more
MOST_OF_FREE = 0.9  # of the memory that is free; the rest is the engine's own to work in
FITTED_OF_FREE = 0.5  # the same where nobody has asked for so much: other models want memory too
LEAST_CONTEXT = 512  # tokens; a model that can have no more is not loaded


def context_of(load: Load, own: int, kv_tokens: int | None, token_bytes: float, fixed_bytes: int = 0) -> int:
    """Tokens that one request may use: what is asked for, at most the model's own, and where that may be lowered
    (`load.fit`) what the memory holds. `kv_tokens`: what the operator sets for all slots."""
    context = min(load.context, own or load.context)
    if not load.fit:
        return context
    fitting = min(context, kv_tokens or context, room(load, token_bytes, fixed_bytes))
    return max(fitting, min(context, LEAST_CONTEXT))


def room(load: Load, token_bytes: float, fixed_bytes: int = 0) -> int:
    """Tokens that fit into memory without crowding out others."""
    free = FITTED_OF_FREE * load.free_bytes - fixed_bytes
    return max(0, int(free / token_bytes)) if load.free_bytes and token_bytes else sys.maxsize


def cells(asked: int | None, context: int, slots: int) -> int:
    """Tokens of the cache that all slots share. Raises ValueError where not even one context would fit."""
    count = asked or max(context, min(context * slots, DEFAULT_TOKENS))
    if count < context:
        raise ValueError(f"kv_tokens {count} is less than the context of {context} tokens; raise it or lower 'context'")
    return count


class NoRoom(ValueError):
    """Where so much free memory would do."""

    def __init__(self, message: str, needed: float) -> None:
        super().__init__(message)
        self.needed = int(needed)


def check_room(runtime: str, tokens: int, needed: float, free: int) -> None:
    """Raises NoRoom for a cache that is `needed` bytes where `free` are free (0: unknown): engines do not ask, and
    the kernel kills the process instead."""
    if free and needed > MOST_OF_FREE * free:
        raise NoRoom(
            f"a KV cache of {tokens} tokens takes {int(needed) >> 20} MiB where {free >> 20} MiB of memory are free; "
            f"lower 'context', 'slots' or options.{runtime}.kv_tokens",
            needed / MOST_OF_FREE + 1,
        )


def granted(_: int) -> bool:
    return True


ask_for_memory: Callable[[int], bool] = granted  # whether this process may take so much more; a worker asks the server


def check_growth(runtime: str, tokens: int, needed: float) -> None:
    """The same for one that is to become larger now."""
    check_room(runtime, tokens, needed, free_memory())
    if not ask_for_memory(int(needed)):
        raise ValueError(
            f"a KV cache of {tokens} tokens takes {int(needed) >> 20} MiB, which memory_budget does not hold beside "
            f"the models that are busy; raise it or lower 'context' or 'slots'"
        )


def common_prefix(a: Any, b: Any) -> int:
    """How many tokens two prompts begin with alike: lists, or arrays of them."""
    import numpy as np

    size = min(len(a), len(b))
    different = np.nonzero(np.asarray(a[:size]) != np.asarray(b[:size]))[0]
    return int(different[0]) if different.size else size
