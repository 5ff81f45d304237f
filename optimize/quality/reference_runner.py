"""Runs a source as it is: what its artifacts are compared with."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.memory import free_memory
from enginehouse.optimize.quality.answers import ANSWER_TOKENS, SEED, TEMPERATURE, TOP_K
from enginehouse.optimize.toolchains import toolchains

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("enginehouse.optimize")
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


class Runner(Protocol):
    def answers(self, prompts: list[list[int]], ends: list[int]) -> list[list[int]]:
        """What it says to them, until one of `ends` comes, sampled with a seed; [] where that cannot be had."""

    def logits(self, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
        """Of each sequence, float32: (tokens, vocabulary)."""


def load_runner(source: Source, name: str, work: Path) -> Runner:
    """`work`: an empty folder."""
    match name:
        case "transformers":
            return Transformers(Path(source.path))
        case "llamacpp":
            return LlamaCpp(Path(source.path) if source.kind == "gguf" else converted(Path(source.path), work))
        case _:
            return OwnEngine(name, Path(source.path))


class Transformers:
    """In 32 bits, weights and arithmetic: four bytes of memory for each weight."""

    def __init__(self, checkpoint: Path) -> None:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, trust_remote_code=False
        ).eval()

    def answers(self, prompts: list[list[int]], ends: list[int]) -> list[list[int]]:
        torch, longest = self._torch, max(map(len, prompts))
        padding = ends[0] if ends else 0
        ids = torch.tensor([[padding] * (longest - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        torch.manual_seed(SEED)
        try:
            with torch.inference_mode():
                said = self._model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=ANSWER_TOKENS,
                    do_sample=True,
                    temperature=TEMPERATURE,
                    top_k=TOP_K,
                    top_p=1.0,
                    eos_token_id=ends or None,
                    pad_token_id=padding,
                )
        except Exception as error:  # of a family whose cache or padding has its own ways
            log.warning("the source does not answer, so texts of ours are compared: %s", error)
            return []
        return [to_its_end(one[longest:].tolist(), ends) for one in said]

    def logits(self, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
        with self._torch.inference_mode():
            for ids in sequences:
                yield self._model(self._torch.tensor([ids]), use_cache=False).logits[0].numpy()


class LlamaCpp:
    def __init__(self, file: Path) -> None:
        self._file = file

    def answers(self, prompts: list[list[int]], ends: list[int]) -> list[list[int]]:
        from enginehouse.optimize.toolchains.gguf.answers import generate

        return generate(self._file, prompts, ANSWER_TOKENS, TEMPERATURE, TOP_K, SEED)

    def logits(self, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
        return toolchains()["gguf"].logits(self._file, sequences)


class OwnEngine:
    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder

    def answers(self, prompts: list[list[int]], ends: list[int]) -> list[list[int]]:
        return []

    def logits(self, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
        return toolchains()[self._name].logits(self._folder, sequences)


def to_its_end(ids: list[int], ends: list[int]) -> list[int]:
    """Up to and with the first token that ends it."""
    at = next((at for at, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: at + 1]


def converted(checkpoint: Path, work: Path) -> Path:
    from enginehouse.optimize.toolchains.gguf.checkpoint import convert, decide

    decided, file = decide(checkpoint), work / "model.gguf"
    convert(decided, file, decided.lossless_precision, lambda stage, fraction: None)
    return file
