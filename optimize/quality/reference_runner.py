"""Runs a source as it is: what its artifacts are compared with."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.memory import free_memory
from enginehouse.optimize.toolchains import toolchains

if TYPE_CHECKING:
    import numpy as np

BESIDE_BYTES = 1 << 30  # torch, and the logits of a text


def choose_runner(source: Source) -> str:
    """Who runs it here: the reference implementation where there is one and the memory for it. Raises CannotBuild."""
    if source.kind != "checkpoint":
        return {"gguf": "llamacpp"}.get(source.kind, source.kind)
    reasons = {
        "transformers": no_transformers(source),
        "llamacpp": no_toolchain("gguf", source),
        "mlx": no_toolchain("mlx", source),
    }
    able = [name for name, reason in reasons.items() if reason is None]
    if not able:
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise CannotBuild(f"nothing here runs '{source.id}' as it is, to compare with: {listed}", environment=True)
    return able[0]


def no_transformers(source: Source) -> str | None:
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            return f"'{module}' is not installed; pip install 'enginehouse[optimize]'"
    needed, free = 4 * (source.parameters or source.bytes // 2) + BESIDE_BYTES, free_memory()
    return None if needed < free else f"{needed >> 20} MiB of memory are needed, {free >> 20} MiB are free"


def no_toolchain(name: str, source: Source) -> str | None:
    return toolchains()[name].unavailable() or toolchains()[name].refuses(source)


def logits(source: Source, name: str, sequences: list[list[int]], work: Path) -> "Iterator[np.ndarray[Any, Any]]":
    """Of each sequence, float32: (tokens, vocabulary). `work`: an empty folder."""
    match name:
        case "transformers":
            return by_transformers(Path(source.path), sequences)
        case "llamacpp":
            file = Path(source.path) if source.kind == "gguf" else converted(Path(source.path), work)
            return toolchains()["gguf"].logits(file, sequences)
        case _:
            return toolchains()[name].logits(Path(source.path), sequences)


def by_transformers(checkpoint: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    """In 32 bits, weights and arithmetic: four bytes of memory for each weight."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=False
    ).eval()
    with torch.inference_mode():
        for ids in sequences:
            yield model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


def converted(checkpoint: Path, work: Path) -> Path:
    from enginehouse.optimize.toolchains.gguf.checkpoint import convert, decide

    decided, file = decide(checkpoint), work / "model.gguf"
    convert(decided, file, decided.lossless_precision, lambda stage, fraction: None)
    return file
