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
from enginehouse.optimize.toolchains.gguf.vocabulary import BYTE, SPACE, UNKNOWN

TEXTS, LONGEST = 300, 12  # of tokens by chance that are compared
WHOLE = (
    llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
)
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
        rules = msgspec.json.decode(keys.get(KEY, "{}"), type=TextRules)
        tokenizer = with_added(tokenizer_of(path, keys, rules), vocabulary, tokens)
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


def tokenizer_of(path: Path, keys: dict[str, Any], rules: TextRules) -> Any:
    if keys["tokenizer.ggml.model"] == "llama":
        return sentencepiece(path, keys, rules)
    try:
        document = of_gguf(keys, path)
    except NoTokenizer:
        return by_transformers(path)
    tokenizer = tokenizers.Tokenizer.from_str(msgspec.json.encode(document).decode())
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def sentencepiece(path: Path, keys: dict[str, Any], rules: TextRules) -> Any:
    """As llama.cpp does it: what is joined first is what gives the token with the highest score."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    fields = [keys.get(f"tokenizer.ggml.{name}", []) for name in ("tokens", "token_type", "scores")]
    if len({len(field) for field in fields}) > 1:
        raise CannotBuild(f"the tokenizer of '{path.name}' has no score and type for each token; download it again")
    tokens, types, scores = fields
    ids = {token: id for id, token in enumerate(tokens)}
    joined = sorted((id for id, type in enumerate(types) if type != BYTE), key=lambda id: -scores[id])
    merges = [pair for id in joined for pair in halves(tokens[id], ids)]
    unknown = next((token for token, type in zip(tokens, types, strict=True) if type == UNKNOWN), None)
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    blanks = normalizers.Replace(" ", SPACE)
    prefix = keys.get("tokenizer.ggml.add_space_prefix", True)
    if rules.space:
        scheme = {"first": "first", "each": "always"}[rules.space]
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), blanks]) if prefix else blanks
    first = [decoders.Strip(" ", 1, 0)] if prefix or rules.space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first]
    )
    return tokenizer


def halves(token: str, ids: dict[str, int]) -> list[tuple[str, str]]:
    pairs = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ids and token[i:] in ids]
    return sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def with_added(tokenizer: Any, vocabulary: Any, tokens: list[str]) -> Any:
    """With the tokens that llama.cpp finds whole in a text: those which the file says, and some that it knows by name,
    as '</s>' in Qwen's vocabulary. Some swallow blanks: Phi-3's."""
    document = json.loads(tokenizer.to_str())
    attributes = {id: llama_cpp.llama_vocab_get_attr(vocabulary, id) for id in range(len(tokens))}
    document["added_tokens"] = [
        {
            "id": id,
            "content": tokens[id],
            "special": not its & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED,
            "lstrip": bool(its & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP),
            "rstrip": bool(its & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP),
            "single_word": False,
            "normalized": False,
        }
        for id, its in attributes.items()
        if its & WHOLE
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(document))


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
