"""What one step of llama.cpp is given: tokens with their places."""

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class Batch:
    """One llama_batch over our own arrays, so that filling it costs no ctypes call per row."""

    def __init__(self, lib: Any, np: Any, rows: int) -> None:
        self._token = np.zeros(rows, np.int32)
        self._position = np.zeros(rows, np.int32)
        self._sequence = np.zeros(rows, np.int32)
        self._counts = np.ones(rows, np.int32)
        self._logits = np.zeros(rows, np.int8)
        self._pointers = (self._sequence.ctypes.data + 4 * np.arange(rows)).astype(np.uintp)
        self._arange = np.arange(rows, dtype=np.int32)

        def pointer(array: "np.ndarray[Any, Any]", kind: Any) -> Any:
            return ctypes.cast(array.ctypes.data, ctypes.POINTER(kind))

        self.struct = lib.llama_batch(
            0,
            pointer(self._token, ctypes.c_int32),
            None,
            pointer(self._position, ctypes.c_int32),
            pointer(self._counts, ctypes.c_int32),
            pointer(self._pointers, ctypes.POINTER(ctypes.c_int32)),
            pointer(self._logits, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.struct.n_tokens = 0

    def add(self, tokens: list[int], position: int, sequence: int, wanted: int) -> range:
        """Adds rows of a sequence, of which the last `wanted` give their output: their indices."""
        row: int = self.struct.n_tokens
        end = row + len(tokens)
        if len(tokens) == 1:  # six times as fast as by slices
            self._token[row], self._position[row], self._sequence[row] = tokens[0], position, sequence
            self._logits[row] = wanted
        else:
            self._token[row:end] = tokens
            self._position[row:end] = self._arange[: len(tokens)] + position
            self._sequence[row:end] = sequence
            self._logits[row : end - wanted] = 0
            self._logits[end - wanted : end] = 1
        self.struct.n_tokens = end
        return range(end - wanted, end)
