"""What every user of the llama.cpp library needs first: its backends found, and its log heard."""

import collections
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp

GGML_FILES = ("libggml.so", "libggml.dylib", "ggml.dll")
_callbacks: list[Any] = []  # llama.cpp's threads call them for as long as the process lives


class Log:
    """Hears everything llama.cpp says from its making on: progress while it quantizes, the reason when it fails."""

    def __init__(self, hear: Callable[[int, str], None] = lambda level, text: None) -> None:
        self.hear = hear
        self.heard: collections.deque[str] = collections.deque(maxlen=100)
        _callbacks.append(llama_cpp.llama_log_callback(self.receive))
        llama_cpp.llama_log_set(_callbacks[-1], None)

    def receive(self, level: int, text: bytes, data: object) -> None:
        self.heard.append(text.decode("utf-8", "replace"))
        self.hear(level, self.heard[-1])

    @property
    def reason(self) -> str:
        """Its last lines, which is where a failure is told."""
        lines = [line.strip() for line in "".join(self.heard).splitlines() if line.strip(" .")]
        return "; ".join(lines[-2:]) or "it gave no reason"


def load_backends() -> None:
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else what it cannot go on with is traced by gdb, for a minute
    """A portable build has its code for each instruction set in a library of its own, and loads the best when told."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = library(folder)
    ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    if ggml.ggml_backend_reg_count() == 0:
        ggml.ggml_backend_load_all_from_path(str(folder).encode())


def library(folder: Path) -> Any:
    """The ggml that llama.cpp itself is linked with: a wheel holds several copies of the file, each with a registry of
    backends of its own. Windows finds no symbol through another library, and has one copy."""
    linked = llama_cpp.llama_cpp._lib
    if hasattr(linked, "ggml_backend_reg_count"):
        return linked
    return ctypes.CDLL(str(next(folder / name for name in GGML_FILES if (folder / name).exists())))
