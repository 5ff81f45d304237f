"""One ONNX Runtime GenAI Generator for each sequence, for graphs and devices that know no other way."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class Generators:
    """They take turns: nothing is shared between sequences, and a step costs as much as there are."""

    copies = False

    def __init__(self, folder: Path, provider: str, threads: int, slots: int, context: int) -> None:
        import onnxruntime_genai

        self._lib: Any = onnxruntime_genai
        self.slots, self._context = slots, context
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        config.clear_providers()
        if provider != "cpu":  # untested: written from the documentation
            config.append_provider(provider)
        self._model = onnxruntime_genai.Model(config)
        self._generators: dict[int, Any] = {}

    def read(self, slot: int, tokens: Sequence[int]) -> "np.ndarray[Any, Any]":
        """Appends to a sequence; the logits after its last token: float32, (vocabulary,)."""
        import numpy as np

        generator = self._generators.get(slot)
        if generator is None:
            parameters = self._lib.GeneratorParams(self._model)
            parameters.set_search_options(max_length=self._context, do_sample=False)
            generator = self._generators[slot] = self._lib.Generator(self._model, parameters)
        generator.append_tokens(np.asarray(tokens, np.int32))
        logits: np.ndarray[Any, Any] = np.array(generator.get_logits()[0, -1], np.float32)
        return logits

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> "np.ndarray[Any, Any]":
        """Appends one token to each of these sequences; the logits after it: float32, (slots, vocabulary)."""
        import numpy as np

        return np.stack([self.read(slot, [token]) for slot, token in zip(slots, tokens, strict=True)])

    def cut(self, slot: int, length: int) -> int:
        """Forgets what follows the first `length` tokens; how many are left: caches with a window keep none."""
        generator = self._generators.get(slot)
        if not generator or generator.token_count() <= length:
            return length if generator else 0
        try:
            generator.rewind_to(length)
        except RuntimeError:
            del self._generators[slot]
            return 0
        return length

    def copy(self, source: int, target: int, length: int) -> None:
        raise NotImplementedError("a Generator cannot be copied")

    def close(self) -> None:
        self._generators.clear()
        del self._model
