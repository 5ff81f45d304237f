"""The tokenizer.json of a source: the one in its folder, or one that says the same as the tokenizer in a GGUF file."""

from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources import gguf_header

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN35 = QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")

# What tokenizer.ggml.pre names, as in llama.cpp's llama-vocab.cpp. Of each pattern at least one name was checked
# against the token ids which llama.cpp ships with its test vocabularies (models/ggml-vocab-*.gguf.out).
PRE_TOKENIZERS = {
    **dict.fromkeys(["qwen2", "deepseek-r1-qwen"], (QWEN2,)),
    **dict.fromkeys(["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"], (LLAMA3,)),
    **dict.fromkeys(["gpt-2", "phi-2", "mpt", "olmo"], (GPT2,)),
    **dict.fromkeys(["starcoder", "smollm", "refact", "command-r"], (r"\p{N}", GPT2)),
    "qwen35": (QWEN35,),
}


class NoTokenizer(Exception):
    """There are no offline counts for this model; the message says why."""


def tokenizer_json(file: Path) -> dict[str, Any]:
    """`file`: a tokenizer.json or a .gguf file. Raises NoTokenizer."""
    try:
        if file.suffix == ".gguf":
            return of_gguf(gguf_header.read_tokenizer(file), file)
        document: dict[str, Any] = msgspec.json.decode(file.read_bytes(), type=dict)
        return {"normalizer": None, "pre_tokenizer": None, "added_tokens": [], **document}
    except OSError as error:
        raise NoTokenizer(f"no tokenizer in '{file}': {error.strerror}") from error
    except CannotBuild as error:
        raise NoTokenizer(str(error)) from error
    except ValueError as error:  # msgspec's and Unicode's errors are ValueErrors
        raise NoTokenizer(f"'{file}' is damaged: {error}") from error


def of_gguf(fields: dict[str, Any], file: Path) -> dict[str, Any]:
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise NoTokenizer(f"'{file}' has a tokenizer of kind '{kind}'; have: gpt2")
    if pre not in PRE_TOKENIZERS:
        raise NoTokenizer(f"'{file}' has pre-tokenizer '{pre}'; have: {', '.join(PRE_TOKENIZERS)}")
    missing = {f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges")} - fields.keys()
    if missing:
        raise NoTokenizer(f"'{file}' lacks {', '.join(sorted(missing))}")
    normal, control, user_defined = 1, 3, 4
    typed = list(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in PRE_TOKENIZERS[pre]
    ]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,  # llama.cpp has none, whatever the model was trained with
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, bytes_only]},
        "added_tokens": [
            {"id": id, "content": token, "special": type == control, **plain}
            for id, (token, type) in enumerate(typed)
            if type in (control, user_defined)
        ],
        "model": {
            "type": "BPE",
            "vocab": {t: id for id, (t, type) in enumerate(typed) if type in (normal, control, user_defined)},
            "merges": fields["tokenizer.ggml.merges"],
            "ignore_merges": PRE_TOKENIZERS[pre] == (LLAMA3,),
        },
    }
