"""What MLX computes of token ids."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.toolchains.mlx.library import import_library, load_model

if TYPE_CHECKING:
    import numpy as np


def logits(folder: Path, sequences: list[list[int]]) -> "Iterator[np.ndarray[Any, Any]]":
    import_library()
    import mlx.core as mx
    import numpy as np

    if not mx.is_available(mx.gpu):
        mx.disable_compile()  # kernels would be compiled by g++
        multiply_in_32_bits()
    try:
        model = load_model(folder)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CannotBuild(f"mlx_lm does not load '{folder.name}': {error}") from error
    for ids in sequences:
        yield np.array(model(mx.array([ids]))[0].astype(mx.float32))


def multiply_in_32_bits() -> None:
    """On a processor MLX has plain loops for packed and 16-bit weights: the pocket model takes seven minutes. The same
    weights widened, and the products rounded back, are what those loops add up to."""
    import mlx.core as mx
    from mlx import nn

    def product(x: Any, weight: Any, bias: Any = None) -> Any:
        wide = x.astype(mx.float32) @ weight.astype(mx.float32).T
        return (wide if bias is None else wide + bias).astype(x.dtype)

    def unpacked(layer: Any) -> Any:
        how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        return mx.dequantize(layer.weight, layer.scales, layer.get("biases"), **how)

    nn.Linear.__call__ = lambda layer, x: product(x, layer.weight, layer.get("bias"))
    nn.Embedding.as_linear = lambda layer, x: product(x, layer.weight)
    nn.QuantizedLinear.__call__ = lambda layer, x: product(x, unpacked(layer), layer.get("bias"))
    nn.QuantizedEmbedding.as_linear = lambda layer, x: product(x, unpacked(layer))
