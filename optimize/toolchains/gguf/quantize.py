"""Quantizes a GGUF file of 16- or 32-bit weights with llama.cpp."""

import ctypes
import re
from pathlib import Path

import llama_cpp

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.sources.gguf_header import PRECISIONS
from enginehouse.optimize.toolchains.gguf.library import Log

PROGRESS = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")  # "[  25/ 310] blk.2.attn_k.weight - .."
FILE_TYPES = {name: number for number, name in PRECISIONS.items()}


def quantize(source: Path, output: Path, precision: str, report: Report) -> None:
    """Blocks until `output` is written; llama.cpp offers no way to stop it but ending the process."""
    raised: list[BaseException] = []

    def hear(level: int, text: str) -> None:
        found = PROGRESS.search(text)
        if found and not raised:
            try:
                report("quantize", int(found[1]) / int(found[2]))
            except BaseException as error:  # nothing passes through C: raised again below
                raised.append(error)

    log = Log(hear)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPES[precision]
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(parameters))
    if raised:
        raise raised[0]
    if code != 0:
        raise CannotBuild(f"llama.cpp could not quantize to '{precision}': {log.reason}")
