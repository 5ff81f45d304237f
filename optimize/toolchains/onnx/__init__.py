"""ONNX Runtime GenAI's folders: built by Olive, quantized by us. Its engine imports `logits`."""

from enginehouse.optimize.toolchains.onnx.toolchain import TOOLCHAIN as TOOLCHAIN
