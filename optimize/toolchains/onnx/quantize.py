"""Quantizes the weights of a graph in place, one at a time: the library's own way holds them all three times over."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.toolchains.onnx.precisions import Precision

if TYPE_CHECKING:
    import numpy as np

DOMAIN = "com.microsoft"
COLUMNS = 4096  # of a weight at a time
EMBEDDING = "/model/embed_tokens/Gather"
HEAD = "/lm_head/MatMul"
NARROW = ("gate_proj", "up_proj", "gate_up_proj", "fc1", "o_proj")  # those that lose least in four bits
ACCURACY = 4  # activations in 8 bits: twice the speed of 32


def quantize_graph(graph: Any, precision: Precision, tied: bool, report: Callable[[float], None]) -> None:
    """`graph`: onnx_ir, with constant 32-bit weights, or MatMulNBits where the checkpoint was quantized already.

    `tied`: head and embedding are one weight, and become one quantized weight.
    """
    matmuls = [node for node in graph if node.op_type == "MatMul" and constant(node.inputs[1])]
    layers = 1 + max((layer_of(node.name) for node in matmuls), default=0)
    # The head first: it is the largest, and what was read of the checkpoint adds up.
    matmuls.sort(key=lambda node: node.name != HEAD)
    for done, node in enumerate(matmuls):
        quantize_matmul(graph, node, packing(node, precision, layers))
        report(done / len(matmuls))
    named = {node.name: node for node in graph}
    embedding = named.get(EMBEDDING)
    if embedding is not None and embedding.op_type == "Gather" and constant(embedding.inputs[0]):
        quantize_embedding(graph, embedding, named.get(HEAD) if tied else None)
    report(1.0)


def packing(node: Any, precision: Precision, layers: int) -> Precision:
    """Of one node, whose name is like /model/layers.0/mlp/up_proj/MatMul."""
    if not precision.mixed:
        bits = precision.head_bits if node.name == HEAD else precision.bits
        return msgspec.structs.replace(precision, bits=bits)
    if any(part in NARROW for part in node.name.split("/")) and not at_an_end(node.name, layers):
        return precision
    # Eight bits have room enough for blocks of 64, whose scales take half as much.
    return Precision(8, 32 if int(node.inputs[1].shape[0]) % 64 else 64, "rtn")


def constant(value: Any) -> bool:
    return value is not None and value.const_value is not None


def at_an_end(name: str, layers: int) -> bool:
    """Of the first or last eighth of the layers, whose errors weigh most."""
    return not layers // 8 <= layer_of(name) < layers - layers // 8


def layer_of(name: str) -> int:
    found = re.search(r"/layers\.(\d+)/", name)
    return int(found[1]) if found else 0


def quantize_matmul(graph: Any, node: Any, packed: Precision) -> None:
    """MatMul -> MatMulNBits."""
    import onnx_ir as ir

    weight = node.inputs[1]
    rows, columns = (int(size) for size in weight.shape)
    if rows % 16:  # a last block that is not full has no kernel in every version
        return
    parts = quantize_weight(weight.const_value, packed.block, packed.bits, packed.method)
    node.op_type, node.domain = "MatMulNBits", DOMAIN
    node.resize_inputs(1 + len(parts))
    for at, (suffix, part) in enumerate(parts.items(), 1):
        node.replace_input_with(at, initializer(graph, f"{weight.name}_{suffix}", part))
    forget(graph, weight)
    settings = {"K": rows, "N": columns, "bits": packed.bits, "block_size": packed.block, "accuracy_level": ACCURACY}
    for name, number in settings.items():
        node.attributes[name] = ir.AttrInt64(name, number)


def quantize_weight(weight: Any, block: int, bits: int, method: str) -> dict[str, "np.ndarray[Any, Any]"]:
    """packed (columns, blocks, bytes), scales (columns, blocks), and for k_quant zeros (columns, bytes)."""
    import numpy as np

    values = weight.numpy()  # (rows, columns): each column is cut into blocks
    columns = values.shape[1]
    way = k_quant if method == "k_quant" else round_to_nearest
    pieces = [
        way(np.ascontiguousarray(values[:, start : start + COLUMNS], np.float32), block, bits)
        for start in range(0, columns, COLUMNS)
    ]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def round_to_nearest(values: "np.ndarray[Any, Any]", block: int, bits: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """Symmetric, by the runtime's own kernel."""
    import numpy as np
    from onnxruntime.capi import _pybind_state as kernels

    rows, columns = values.shape
    blocks = -(-rows // block)
    if blocks * block > rows:
        values = np.pad(values, ((0, blocks * block - rows), (0, 0)))
    packed = np.zeros((columns, blocks, block * bits // 8), np.uint8)
    scales = np.zeros((columns, blocks), np.float32)
    zeros = np.zeros((columns, -(-blocks * bits // 8)), np.uint8)
    kernel = kernels.quantize_matmul_8bits if bits == 8 else kernels.quantize_matmul_4bits
    kernel(packed, values, scales, zeros, block, columns, rows, True)
    return {f"Q{bits}": packed, "scales": scales}


def k_quant(values: "np.ndarray[Any, Any]", block: int, bits: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """Asymmetric, scale and zero searched for the least weighted error, as llama.cpp does."""
    import numpy as np
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    rows, columns = values.shape
    blocks = -(-rows // block)
    if blocks * block > rows:
        values = np.pad(values, ((0, blocks * block - rows), (0, 0)))
    numbers, scales, zeros = quant_tensor_k_quant_cpu(np.ascontiguousarray(values.T), bits, block)
    packed = nibbles(numbers.astype(np.uint8)) if bits == 4 else numbers.astype(np.uint8)
    zeros = zeros.reshape(columns, blocks)
    return {
        f"Q{bits}": packed.reshape(columns, blocks, -1),
        "scales": scales.astype(np.float32).reshape(columns, blocks),
        "zeros": nibbles(np.pad(zeros, ((0, 0), (0, blocks % 2)))) if bits == 4 else zeros,
    }


def nibbles(numbers: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Two four-bit numbers a byte, the first one low."""
    packed: np.ndarray[Any, Any] = numbers[:, ::2] | numbers[:, 1::2] << 4
    return packed


def quantize_embedding(graph: Any, node: Any, head: Any | None) -> None:
    """Gather -> GatherBlockQuantized: of the head's own weight if they are one, else of eight bits."""
    import onnx_ir as ir

    weight = node.inputs[0]
    words, width = (int(size) for size in weight.shape)
    if head is not None and head.op_type == "MatMulNBits" and width % head.attributes["block_size"].as_int() == 0:
        bits, block = head.attributes["bits"].as_int(), head.attributes["block_size"].as_int()
        shape = ir.node("Constant", [], {"value_ints": [words, width * bits // 8]}, name=f"{EMBEDDING}/Shape")
        reshape = ir.node("Reshape", [head.inputs[1], shape.outputs[0]], name=f"{EMBEDDING}/Reshape")
        for added in (shape, reshape):
            added.outputs[0].name = f"{added.name}/output_0"
        graph.insert_before(node, [shape, reshape])
        inputs = [reshape.outputs[0], node.inputs[1], *head.inputs[2:]]
    else:
        bits, block = 8, next((size for size in (32, 16) if width % size == 0), 0)
        if not block:
            return
        parts = quantize_weight(Transposed(weight.const_value), block, bits, "rtn")
        packed = initializer(graph, f"{weight.name}_Q8", parts["Q8"].reshape(words, -1))
        inputs = [packed, node.inputs[1], initializer(graph, f"{weight.name}_scales", parts["scales"])]
    node.op_type, node.domain = "GatherBlockQuantized", DOMAIN
    node.resize_inputs(len(inputs))
    for at, value in enumerate(inputs):
        node.replace_input_with(at, value)
    forget(graph, weight)
    node.attributes.clear()
    for name, number in {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}.items():
        node.attributes[name] = ir.AttrInt64(name, number)


class Transposed:
    """A constant, as quantize_weight wants it."""

    def __init__(self, weight: Any) -> None:
        self._weight = weight

    def numpy(self) -> "np.ndarray[Any, Any]":
        transposed: np.ndarray[Any, Any] = self._weight.numpy().T
        return transposed


def initializer(graph: Any, name: str, array: "np.ndarray[Any, Any]") -> Any:
    import onnx_ir as ir

    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def forget(graph: Any, value: Any) -> None:
    """Lets go of a weight that nothing reads any more."""
    if not value.uses():
        del graph.initializers[value.name]
        value.const_value = None
