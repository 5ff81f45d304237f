"""Floats that numpy has no type for: to 32 bits and back."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")


def widen(array: "np.ndarray[Any, Any]", dtype: str) -> "np.ndarray[Any, Any]":
    """`dtype`: safetensors' word for what `array` holds, BF16 as 16-bit and eight bits as 8-bit integers."""
    import numpy as np

    if dtype == "BF16":
        return np.asarray((array.astype(np.uint32) << 16).view(np.float32))
    if dtype.startswith("F8"):
        return np.asarray(eight_bits(dtype)[array])
    return np.asarray(array.astype(np.float32))


def narrow(array: "np.ndarray[Any, Any]", precision: str) -> "np.ndarray[Any, Any]":
    """32 bits as "F32", "F16" or "BF16"."""
    import numpy as np

    if precision == "BF16":  # to the nearest, ties to even; NaN stays NaN
        bits = array.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
        return np.asarray(np.where(np.isnan(array), bits >> 16 | 64, rounded).astype(np.uint16))
    if precision == "F16":
        with np.errstate(over="ignore"):
            return np.asarray(array.astype(np.float16))
    return array


@lru_cache
def eight_bits(dtype: str) -> "np.ndarray[Any, Any]":
    """The 256 numbers of a type of eight bits."""
    import numpy as np

    code = np.arange(256, dtype=np.int64)
    if dtype == "F8_E8M0":
        return np.where(code == 255, np.nan, 2.0 ** (code - 127.0)).astype(np.float32)
    mantissa_bits, bias = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15)}[dtype]
    exponent, mantissa = (code & 0x7F) >> mantissa_bits, (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if dtype == "F8_E5M2":
        values = np.where(exponent == 31, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        values = np.where(code & 0x7F == 0x7F, np.nan, values)
    return np.where(code & 0x80, -values, values).astype(np.float32)
