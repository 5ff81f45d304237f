"""ONNX Runtime GenAI's folders, by Olive."""

from enginehouse.optimize.toolchains.onnx.toolchain import TOOLCHAIN as TOOLCHAIN
