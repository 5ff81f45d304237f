"""Prompts as a GGUF renders and cuts them, and what llama.cpp answers to many at once."""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.toolchains.gguf.library import Log
from enginehouse.optimize.toolchains.gguf.logits import ROWS, cut, load, new_context


def vocabulary_of(file: Path, texts: list[str], special: bool) -> tuple[list[list[int]], list[int], int]:
    """Their token ids, those that end an answer, and the size of the vocabulary. `special`: the texts name control
    tokens, BOS among them."""
    model = load(file, Log(), vocabulary_only=True)
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        ends = [token for token in range(size) if llama_cpp.llama_vocab_is_eog(vocabulary, token)]
        return [cut(vocabulary, text, special) for text in texts], ends, size
    finally:
        llama_cpp.llama_model_free(model)


def generate(
    file: Path, prompts: list[list[int]], tokens: int, temperature: float, top_k: int, seed: int
) -> list[list[int]]:
    """Up to `tokens` after each prompt, its end among them; all in one batch."""
    log, chance = Log(), np.random.default_rng(seed)
    model = load(file, log)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    context = new_context(model, sum(map(len, prompts)) + tokens * len(prompts), log, len(prompts))
    batch = llama_cpp.llama_batch_init(ROWS, 0, 1)
    said: list[list[int]] = [[] for _ in prompts]

    def step(rows: list[tuple[int, int, int, bool]]) -> None:
        """Reads (sequence, place, token, whether it is answered), and chooses what comes after those that are."""
        batch.n_tokens = len(rows)
        for row, (sequence, place, token, answered) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, place, 1
            batch.seq_id[row][0], batch.logits[row] = sequence, answered
        if code := llama_cpp.llama_decode(context, batch):
            raise CannotBuild(f"llama.cpp does not run '{file.name}': code {code}; {log.reason}")
        for row, (sequence, _, _, answered) in enumerate(rows):
            if answered:
                found = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, row), (size,))
                said[sequence].append(choose(found, temperature, top_k, chance))

    try:
        for sequence, ids in enumerate(prompts):
            rows = [(sequence, place, token, place == len(ids) - 1) for place, token in enumerate(ids)]
            for start in range(0, len(rows), ROWS):
                step(rows[start : start + ROWS])
        for length in range(1, tokens):
            going = [n for n, ids in enumerate(said) if not llama_cpp.llama_vocab_is_eog(vocabulary, ids[-1])]
            if not going:
                break
            step([(n, len(prompts[n]) + length - 1, said[n][-1], True) for n in going])
        return said
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def choose(logits: Any, temperature: float, top_k: int, chance: np.random.Generator) -> int:
    best = np.argpartition(-logits, min(top_k, len(logits) - 1))[:top_k]
    weights = np.exp((logits[best] - logits[best].max()) / temperature, dtype=np.float64)
    return int(chance.choice(best, p=weights / weights.sum()))


def chat_template(file: Path) -> tuple[str, dict[str, str]]:
    """ "" where there is none; and the tokens that templates name."""
    model = load(file, Log(), vocabulary_only=True)
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        template = llama_cpp.llama_model_chat_template(model, None) or b""
        named = {
            "bos_token": token_text(vocabulary, llama_cpp.llama_vocab_bos(vocabulary)),
            "eos_token": token_text(vocabulary, llama_cpp.llama_vocab_eos(vocabulary)),
        }
        return template.decode("utf-8", "replace"), named
    finally:
        llama_cpp.llama_model_free(model)


def token_text(vocabulary: Any, token: int) -> str:
    text = llama_cpp.llama_vocab_get_text(vocabulary, token) if token >= 0 else None
    return ctypes.string_at(text).decode("utf-8", "replace") if text else ""
