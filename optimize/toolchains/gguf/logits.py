"""What llama.cpp computes of token ids, with the settings its engine has by default."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.toolchains.gguf.library import Log, load_backends

ROWS = 128  # tokens read in one go: llama.cpp holds the logits of so many


def logits(file: Path, sequences: list[list[int]]) -> Iterator[np.ndarray[Any, Any]]:
    log = Log()
    model = load(file, log)
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    context = new_context(model, max(map(len, sequences)), log)
    batch = llama_cpp.llama_batch_init(ROWS, 0, 1)
    try:
        for ids in sequences:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            found = np.empty((len(ids), size), np.float32)
            for start in range(0, len(ids), ROWS):
                count = fill(batch, ids[start : start + ROWS], start)
                if code := llama_cpp.llama_decode(context, batch):
                    raise CannotBuild(f"llama.cpp does not run '{file.name}': code {code}; {log.reason}")
                rows = llama_cpp.llama_get_logits(context)
                found[start : start + count] = np.ctypeslib.as_array(rows, (count, size))
            yield found
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def load(file: Path, log: Log, vocabulary_only: bool = False) -> Any:
    load_backends()
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.vocab_only = vocabulary_only
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
    if not model:
        raise CannotBuild(f"llama.cpp does not load '{file.name}': {log.reason}")
    return model


def new_context(model: Any, cells: int, log: Log, sequences: int = 1) -> Any:
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max, parameters.kv_unified = cells, sequences, True
    parameters.n_batch = parameters.n_ubatch = ROWS
    parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
    parameters.no_perf = True
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise CannotBuild(f"llama.cpp cannot make a context of {cells} tokens: {log.reason}")
    return context


def fill(batch: Any, ids: list[int], start: int) -> int:
    batch.n_tokens = len(ids)
    for row, token in enumerate(ids):
        batch.token[row] = token
        batch.pos[row] = start + row
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = 0
        batch.logits[row] = True
    return len(ids)


def tokenize(file: Path, texts: list[str]) -> tuple[list[list[int]], int]:
    """As the file's own tokenizer does it, with BOS where the model wants one; and the size of its vocabulary."""
    model = load(file, Log(), vocabulary_only=True)
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        return [cut(vocabulary, text) for text in texts], llama_cpp.llama_vocab_n_tokens(vocabulary)
    finally:
        llama_cpp.llama_model_free(model)


def cut(vocabulary: Any, text: str, special: bool = False) -> list[int]:
    """`special`: control tokens are written out in it, BOS among them."""
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    return list(ids[: llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), not special, special)])
