"""Proves an artifact before it is used: llama.cpp loads it, and cuts text as the checkpoint's tokenizer does."""

import ctypes
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec
import tokenizers

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.toolchains.gguf.library import Log, load_backends
from enginehouse.optimize.toolchains.gguf.text import KEY, TextRules, prepare_text

SAMPLED_TOKENS = 2000
RULES_BYTES = 1 << 20
TEXTS = (
    "Hello world! It's what they'd SAID: we'll, I'm, you've, DON'T, o'clock, THEY'RE 'tis.",
    "def f(x: int = 3) -> list[str]:\n\tif x != 0x1F:\n\t\treturn [f'{x:>8}'] * 10_000  # no-op\n\n\n",
    "<div class=\"a\">&amp;</div>\r\n\r\n{'k': [1, 2.5e-10, -3]};;//\\\\ $$ ~~ `` __init__ ||",
    "1234567890 12 345 6789 3.14159 1,000,000 ١٢٣ Ⅷ ½ x²",
    "camelCase PascalCase SCREAMING_CASE mixedCASEWord iPhone XMLHttpRequest",
    "你好\uff0c世界\u3002こんにちはカタカナ 안녕하세요 𠀀",
    "😀 👨\u200d👩\u200d👧\u200d👦 🇩🇪 👍🏽 ❤\ufe0f",
    "مرحبا بالعالم \u202bשלום\u202c עולם",
    "e\u0301 n\u0303 a\u0308o\u0302 Z\u0351\u036b\u0343 नमस\u094dत\u0947 สว\u0e31สด\u0e35 \u1100\u1161\u11a8",
    "Привет Καλημέρα İstanbul straße ǅ naïve café",
    " leading", "  two", "trailing  ", "a  b   c    d", "\t\ttabs\t mixed \t", "\n\n\nlines\n \n  \n", "\r\n\r\n", " ",
    "\u00a0\u2003\u3000 wide\u200bzero\ufeffmark\u00adsoft", "\x01\x02\x1b[31m\x7f\x80\x85",
    "\ufffd\ufffe\U0010ffff\ue000",
    "a" * 300, "=" * 80, "-" * 33, "!?" * 20, " " * 70, "\n" * 40, "ab " * 50,
)  # fmt: skip


def check(artifact: Path, checkpoint: Path | None, report: Report) -> None:
    """Raises CannotBuild naming what llama.cpp said, or the first text it cuts differently than the checkpoint's own
    tokenizer."""
    report("check", 0.0)
    log = Log()
    load_backends()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.check_tensors = True
    parameters.use_extra_bufts = False  # those would copy the weights
    model = llama_cpp.llama_model_load_from_file(str(artifact).encode(), parameters)
    if not model:
        raise CannotBuild(f"llama.cpp does not load what was built: {log.reason}")
    try:
        if checkpoint is not None:
            compare_tokens(llama_cpp.llama_model_get_vocab(model), checkpoint, rules_in(model), report)
    finally:
        llama_cpp.llama_model_free(model)
    report("check", 1.0)


def rules_in(model: Any) -> TextRules:
    written = ctypes.create_string_buffer(RULES_BYTES)
    size = llama_cpp.llama_model_meta_val_str(model, KEY.encode(), written, RULES_BYTES)
    return msgspec.json.decode(written.value, type=TextRules) if size > 0 else TextRules()


def compare_tokens(vocabulary: Any, checkpoint: Path, rules: TextRules, report: Report) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts = [*TEXTS, *texts_of(tokenizer)]
    for done, text in enumerate(texts):
        expected = tokenizer.encode(text, add_special_tokens=False).ids
        got = tokenize(vocabulary, prepare_text(text, rules))
        if got != expected:
            raise CannotBuild(difference(text, got, expected))
        if done % 100 == 0:
            report("check", done / len(texts))


def difference(text: str, got: list[int], expected: list[int]) -> str:
    pairs = enumerate(zip_longest(got, expected))
    same = next(i for i, (ours, theirs) in pairs if ours != theirs)
    return (
        f"llama.cpp cuts the text {text[:60]!r} differently from the checkpoint's tokenizer: token {same} on is "
        f"{got[same : same + 4]}, not {expected[same : same + 4]}; use another runtime for this model"
    )


def texts_of(tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    """Texts around every added token, and a sample of the vocabulary as text."""
    for token in tokenizer.get_added_tokens_decoder().values():
        yield f"a{token.content}b {token.content}\nC{token.content}{token.content} "
    size = tokenizer.get_vocab_size()
    for id in range(0, size, max(1, size // SAMPLED_TOKENS)):
        text = tokenizer.decode([id], skip_special_tokens=False)
        if text and "\ufffd" not in text:
            yield text
            yield f"x {text}{text}"


def tokenize(vocabulary: Any, text: str) -> list[int]:
    """Token ids without BOS or EOS, added tokens in the text recognized."""
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)
    return list(ids[:count])
