"""The engine contract once more, over ONNX Runtime's other path: a GenAI Generator for each sequence."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from optimize.prepare import locate, prepare
from optimize.toolchains.onnx import TOOLCHAIN
from runtimes.contract import Engine, Load
from runtimes.engines.onnx import RUNTIME
from tests.test_engine_contract import *  # noqa: F403
from tests.test_engine_contract import CONTEXT, SLOTS


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def build(folder: Path) -> Any:
    if reason := RUNTIME.unavailable() or TOOLCHAIN.unavailable():
        pytest.skip(reason)

    async def artifact() -> str:
        source = await locate("builtin:pocket", None, lambda stage, done: None)
        cache = folder / "cache"
        return (await prepare(source, TOOLCHAIN, TOOLCHAIN.precisions["f32"], cache, lambda stage, done: None)).path

    path = asyncio.run(artifact())

    def load(**options: Any) -> Engine:
        slots, own = options.pop("slots", SLOTS), {"prefill_chunk": 32, "path": "generator", **options}
        return RUNTIME.load(Load("onnx", path, CONTEXT, slots, 2, 0, own), lambda fraction: None)

    load.runtime = "onnx"  # type: ignore[attr-defined]
    return load
