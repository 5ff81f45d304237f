"""Makes a 32-bit graph a float16 one by ONNX Runtime's own converter, which sees no weights: they follow singly."""

from pathlib import Path
from typing import Any

SMALLEST, LARGEST = 1e-7, 1e4  # the converter's own limits for constants
ELEMENTS = 1 << 20  # of a weight at a time


def convert(source: Path, target: Path) -> None:
    """`source`: model.onnx with its weights in external files beside it; `target` gets one file of them."""
    import onnx
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(str(source), load_external_data=False)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if is_weight(tensor)}
    small = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    replace(model.graph.initializer, small)
    for tensor in weights.values():  # the converter holds them to be inputs
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    converter = OnnxModel(model)
    converter.convert_float_to_float16(use_symbolic_shape_infer=False, keep_io_types=False)
    graph = converter.model.graph
    replace(graph.input, [value for value in graph.input if value.name not in weights])
    data = target.with_name(target.name + ".data")
    with data.open("wb") as stream:
        for tensor in weights.values():
            graph.initializer.append(written(tensor, source.parent, stream, data.name))
    onnx.save(converter.model, str(target))


def is_weight(tensor: Any) -> bool:
    import onnx

    return bool(tensor.data_type == onnx.TensorProto.FLOAT and tensor.data_location == onnx.TensorProto.EXTERNAL)


def replace(field: Any, values: list[Any]) -> None:
    del field[:]
    field.extend(values)


def written(tensor: Any, folder: Path, stream: Any, name: str) -> Any:
    """The weight in 16 bits, appended to the stream, and what the graph says of it."""
    import numpy as np
    import onnx

    values = onnx.numpy_helper.to_array(tensor, base_dir=str(folder)).reshape(-1)
    stream.write(b"\0" * (-stream.tell() % 4096))
    entry = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=onnx.TensorProto.FLOAT16)
    entry.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", str(stream.tell())), ("length", str(2 * values.size))):
        entry.external_data.add(key=key, value=value)
    for start in range(0, values.size, ELEMENTS):
        part = values[start : start + ELEMENTS]
        within = np.copysign(np.clip(np.abs(part), SMALLEST, LARGEST), part)
        stream.write(np.where(part == 0, 0, within).astype(np.float16).tobytes())
    return entry
