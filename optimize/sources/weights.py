"""Whether the weights of a checkpoint are numbers."""

import math
from pathlib import Path

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.safetensors import StoredTensor, list_tensors, read_tensor

BLOCK = 1 << 22  # weights looked at together
EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}  # all of these bits set: infinite, or no number


def check_finite(folder: Path) -> None:
    """Reads every weight once; raises CannotBuild naming the first tensor with NaN or infinite ones."""
    for name, tensor in list_tensors(folder).items():
        if not is_finite(tensor):
            raise CannotBuild(
                f"tensor '{name}' in '{tensor.file.name}' has NaN or infinite weights; the checkpoint is broken, "
                "download it again"
            )


def is_finite(tensor: StoredTensor) -> bool:
    import numpy

    exponent = EXPONENT.get(tensor.dtype)
    if exponent is None or not math.prod(tensor.shape):
        return True
    flat = read_tensor(tensor).reshape(-1)
    bits = flat.view(numpy.uint32) if tensor.dtype == "F32" else flat.view(numpy.uint16)
    pieces = (bits[start : start + BLOCK] for start in range(0, bits.size, BLOCK))
    return not any(((piece & exponent) == exponent).any() for piece in pieces)
