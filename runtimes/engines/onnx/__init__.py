"""ONNX Runtime, and ONNX Runtime GenAI."""

from enginehouse.runtimes.engines.onnx.engine import RUNTIME as RUNTIME
