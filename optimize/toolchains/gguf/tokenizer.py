"""The tokenizer of a .gguf file as files of a checkpoint, compared with llama.cpp's own."""

import ctypes
import json
import random
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec
import tokenizers

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources import gguf_header
from enginehouse.optimize.sources.token_count import NASTY
from enginehouse.optimize.sources.tokenizer_json import NoTokenizer, of_gguf
from enginehouse.optimize.toolchains.gguf.library import Log
from enginehouse.optimize.toolchains.gguf.logits import load
from enginehouse.optimize.toolchains.gguf.text import KEY, TextRules, prepare_text

TEXTS, LONGEST = 300, 12  # of tokens by chance that are compared
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
END_KEY = "enginehouse.eos_token_ids"  # those that GGUF has no room for, in files of ours


def write_tokenizer(path: Path, folder: Path, rows: int) -> None:
    """Its four files, and generation_config.json. Raises CannotBuild unless it gives llama.cpp's tokens.

    `rows`: of the embedding.
    """
    keys = gguf_header.read(path, tokenizer=True)[0]
    tokens = keys.get("tokenizer.ggml.tokens", [])
    if len(tokens) != rows:
        raise CannotBuild(f"'{path.name}' has {len(tokens)} tokens and an embedding of {rows} rows; download it again")
    model = load(path, Log(), vocabulary_only=True)
    try:
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        tokenizer, rules = tokenizer_of(path, keys), msgspec.json.decode(keys.get(KEY, "{}"), type=TextRules)
        if rules.nfc:
            tokenizer.normalizer = tokenizers.normalizers.NFC()
        close(tokenizer, vocabulary, tokens)
        compare(tokenizer, vocabulary, rules, path.name)
        ends = {id for id in range(len(tokens)) if llama_cpp.llama_vocab_is_eog(vocabulary, id)}
    finally:
        llama_cpp.llama_model_free(model)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for word, name in NAMED.items():
        id = keys.get(f"tokenizer.ggml.{name}_token_id")
        settings |= {} if id is None else {word: tokens[id]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(str(keys.get("tokenizer.chat_template", "")), encoding="utf-8")
    ends |= set(json.loads(keys.get(END_KEY, "[]")))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(ends)}))


def tokenizer_of(path: Path, keys: dict[str, Any]) -> Any:
    try:
        document = of_gguf(keys, path)
    except NoTokenizer:
        return by_transformers(path)
    tokenizer = tokenizers.Tokenizer.from_str(msgspec.json.encode(document).decode())
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def by_transformers(path: Path) -> Any:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer
    except ImportError as error:
        raise CannotBuild(
            f"the tokenizer of '{path.name}' is read by 'transformers', which is not installed; "
            "pip install 'enginehouse[optimize]'"
        ) from error
    architecture, described, _ = get_gguf_tokenizer(str(path))
    return convert_gguf_tokenizer(architecture, described)[0]


def close(tokenizer: Any, vocabulary: Any, tokens: list[str]) -> None:
    """Puts around a text what llama.cpp puts around it."""
    bos = llama_cpp.llama_vocab_bos(vocabulary) if llama_cpp.llama_vocab_get_add_bos(vocabulary) else -1
    eos = llama_cpp.llama_vocab_eos(vocabulary) if llama_cpp.llama_vocab_get_add_eos(vocabulary) else -1
    around = {id: tokens[id] for id in (bos, eos) if id >= 0}
    single = [*([around[bos]] if bos >= 0 else []), "$A", *([around[eos]] if eos >= 0 else [])]
    named = [(token, id) for id, token in around.items()]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=single, special_tokens=named)


def compare(tokenizer: Any, vocabulary: Any, rules: TextRules, name: str) -> None:
    chance = random.Random(0)
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    ids = range(tokenizer.get_vocab_size())
    texts = ["", NASTY, *(between.join(added[:100]) for between in (NASTY, "", "  x ", "\n"))]
    for _ in range(TEXTS):
        drawn = chance.choices(ids, k=chance.randint(1, LONGEST))
        texts.append(tokenizer.decode(drawn, skip_special_tokens=False))
    for text, found in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if found.ids != cut(vocabulary, prepare_text(text, rules)):
            raise CannotBuild(
                f"the tokenizer made of '{name}' gives other tokens than llama.cpp's own on {text[:40]!r}; "
                "only llama.cpp serves this file"
            )


def cut(vocabulary: Any, text: str) -> list[int]:
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    return list(ids[: llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), True, True)])
