"""GGUF files: converted by us, quantized and checked by llama.cpp. Its engine imports `library` and `text`."""

from enginehouse.optimize.toolchains.gguf.toolchain import TOOLCHAIN as TOOLCHAIN
