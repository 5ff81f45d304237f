"""GGUF, by llama.cpp."""

from enginehouse.optimize.toolchains.gguf.toolchain import TOOLCHAIN as TOOLCHAIN
