"""The engine contract once more, over ONNX Runtime's other path: a GenAI Generator for each sequence."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from enginehouse.optimize.prepare import locate, prepare
from enginehouse.optimize.toolchains.onnx.toolchain import TOOLCHAIN
from enginehouse.runtimes.contract import Engine, Load, Sampling
from enginehouse.runtimes.engines.onnx.engine import RUNTIME
from tests.runtimes.engines.test_engine_contract import *  # noqa: F403
from tests.runtimes.engines.test_engine_contract import (
    CONTEXT,
    SLOTS,
    Jobs,
    prompt,
    test_a_prefix_is_shared_with_a_job_still_running,
)

del test_a_prefix_is_shared_with_a_job_still_running  # a Generator cannot be copied


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def build(folder: Path) -> Any:
    if reason := RUNTIME.unavailable() or TOOLCHAIN.unavailable():
        pytest.skip(reason)

    async def artifact() -> str:
        source = await locate("builtin:pocket", None, lambda stage, done: None)
        cache = folder / "cache"
        return (
            await prepare(source, TOOLCHAIN, TOOLCHAIN.precisions["f32"], cache, lambda stage, done: None, rules=None)
        ).path

    path = asyncio.run(artifact())

    def load(**options: Any) -> Engine:
        slots, place, kv = options.pop("slots", SLOTS), options.pop("place", path), options.pop("kv", "")
        own = {"prefill_chunk": 32, "path": "generator", **options}
        return RUNTIME.load(
            Load("onnx", place, CONTEXT, slots, 2, 0, own, kv_folder=kv, kv_bytes=1 << 30), lambda _: None
        )

    load.runtime, load.path = RUNTIME, path  # type: ignore[attr-defined]
    return load


def test_a_prompt_that_a_running_job_has_read_is_read_anew(engine: Engine) -> None:
    story = engine.encode(prompt("Repeat: " + "paper silver " * 20))
    jobs = Jobs(engine)
    jobs.add(0, story, Sampling(max_tokens=60, temperature=0, ignore_eos=True))
    while not jobs.tokens[0]:
        jobs.step()
    jobs.add(1, story)
    jobs.finish()
    assert jobs.tokens[1][0].cached < len(story) // 2
    assert jobs.text(1) == jobs.text(0)[: len(jobs.text(1))]
