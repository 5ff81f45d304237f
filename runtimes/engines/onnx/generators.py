"""One ONNX Runtime GenAI Generator for each sequence, for graphs and devices that know no other way."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.runtimes.decoding.batching import Chunk

if TYPE_CHECKING:
    import numpy as np


class Generators:
    """They take turns: nothing is shared between sequences, and a step costs as much as there are."""

    shares = False
    guesses = 0

    def __init__(self, folder: Path, provider: str, threads: int, slots: int, context: int) -> None:
        import onnxruntime_genai

        self._lib: Any = onnxruntime_genai
        self.slots, self.context, self.cells = slots, context, slots * context
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        config.clear_providers()
        if provider != "cpu":  # untested: written from the documentation
            config.append_provider(provider)
        self._model = onnxruntime_genai.Model(config)
        self._generators: dict[int, Any] = {}

    def forward(self, chunks: Sequence[Chunk]) -> "list[np.ndarray[Any, Any]]":
        """Logits are float32, (vocabulary,)."""
        rows = [self._append(chunk.slot, chunk.tokens) for chunk in chunks]
        return [row for row, chunk in zip(rows, chunks, strict=True) if chunk.rows]

    def _append(self, slot: int, tokens: Sequence[int]) -> "np.ndarray[Any, Any]":
        import numpy as np

        generator = self._generators.get(slot)
        if generator is None:
            parameters = self._lib.GeneratorParams(self._model)
            parameters.set_search_options(max_length=self.context, do_sample=False)
            generator = self._generators[slot] = self._lib.Generator(self._model, parameters)
        generator.append_tokens(np.asarray(tokens, np.int32))
        logits: np.ndarray[Any, Any] = np.array(generator.get_logits()[0, -1], np.float32)
        return logits

    def reusable(self, slot: int, length: int) -> bool:
        return True

    def truncate(self, slot: int, length: int, expected: int) -> int:
        """Nothing is left of caches with a window."""
        generator = self._generators.get(slot)
        if not generator or generator.token_count() <= length:
            return length if generator else 0
        try:
            generator.rewind_to(length)
        except RuntimeError:
            del self._generators[slot]
            return 0
        return length

    def copy(self, source: int, target: int, length: int) -> int:
        raise NotImplementedError("a Generator cannot be copied")

    def close(self) -> None:
        self._generators.clear()
        del self._model
