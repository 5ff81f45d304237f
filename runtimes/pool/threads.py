"""Threads for what may hang. Each model's files have a few of their own, and so has what was learnt: a disk that does
not answer holds up one model and not the rest."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
EACH = 4
RECORDS = "what was learnt"  # beside the names of models


class Threads:
    def __init__(self, each: int = EACH) -> None:
        self._each = each
        self._executors: dict[str, ThreadPoolExecutor] = {}

    async def run(self, whose: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`whose`: the model's name, or another owner's."""
        executor = self._executors.get(whose)
        if executor is None:
            executor = self._executors[whose] = ThreadPoolExecutor(self._each, f"files of {whose}")
        in_context = partial(copy_context().run, work, *args, **kwargs)  # what it logs bears the request's id
        return await asyncio.get_running_loop().run_in_executor(executor, in_context)

    def end(self) -> None:
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
