"""From the hidden states of a text's tokens to its embedding."""

from typing import TYPE_CHECKING, Any

from enginehouse.runtimes.contract import Pooling

if TYPE_CHECKING:
    import numpy as np


def pooled(hidden: "np.ndarray[Any, Any]", pooling: Pooling) -> list[float]:
    """`hidden`: (tokens, width), of the last layer after its norm. A vector of length 1."""
    import numpy as np

    vector = hidden.mean(0) if pooling == "mean" else hidden[-1 if pooling == "last" else 0]
    unit: list[float] = (vector / max(float(np.linalg.norm(vector)), 1e-12)).tolist()
    return unit
