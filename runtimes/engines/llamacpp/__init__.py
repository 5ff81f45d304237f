"""llama.cpp by llama-cpp-python."""

from enginehouse.runtimes.engines.llamacpp.engine import RUNTIME as RUNTIME
