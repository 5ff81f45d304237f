"""Counts made before a load are the counts the model's own tokenizer makes."""

import json
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from enginehouse.optimize.sources import token_count
from enginehouse.optimize.sources.tokenizer_json import GPT2, LLAMA3, QWEN2, QWEN35

CORPUS = [
    "The quick brown fox jumps over the lazy dog; it's the 3rd time in 2024, they'll say.\n",
    "def add(a, b):\n    return a + b\n\n\nif __name__ == '__main__':\n\tprint(add(1, 22222))\n",
    '{"name": "x", "items": [1, 2.5, null], "text": "<think> maybe </think>"}\r\n',
    "日本語のテキスト、中文文本。 Привет, мир! שלום עולם. 👩\u200d👩\u200d👧 é e\u0301 \u212b ñ\n",
    " " * 40 + "x" + "\n" * 9 + "!!!???...\t\t\t",
] * 3
CONTROL, PLAIN, SPACED = "<|im_start|>", "<think>", "<two words>"
NASTY = [
    "",
    " ",
    "\n",
    "I'LL we'd 'S it\u2019s",
    "1234567 ٣٤ ½²",
    "e\u0301 \u212b \u1112\u1161\u11ab <think>\u0338",
    f"{CONTROL}user\nhi{PLAIN}{PLAIN} {SPACED}<two  words>",
    "\x00\x1c\x1f\x85\u00a0\u2028\u3000x\ufeff\u200b",
    "a \r\n \n\n  b   \t\n  ",
    "!!\n\n?? \n/",
    "👩\u200d👩\u200d👧🏽 \U0010ffff\ud7ff\ue000",
    "क्षि ก็ ﷺ \u202eabc",
    "supercalifragilistic" * 30,
]
PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Texts of words, blanks and tokens, and of any characters at all.
TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*" \t\n\r!'.1aé日", "  ", "the", "'ll", "\u0301", CONTROL, PLAIN, SPACED])).map("".join),
)


def trained(pattern: str, *, nfc: bool = False, merge_whole: bool = False) -> tokenizers.Tokenizer:
    """A byte-level BPE of about 600 tokens, with a control token and one added token that is none."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=merge_whole))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.add_special_tokens([CONTROL])
    tokenizer.add_tokens([tokenizers.AddedToken(PLAIN, normalized=False, special=False)])
    return tokenizer


def saved(tokenizer: tokenizers.Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def edited(folder: Path, **model: Any) -> Path:
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"] |= model
    file.write_text(json.dumps(document))
    return folder


def written(tokenizer: tokenizers.Tokenizer, file: Path, pre: str, kind: str = "gpt2") -> Path:
    """The tokenizer as the converters of llama.cpp write it."""
    document = json.loads(tokenizer.to_str())
    added = {token["id"]: token["special"] for token in document["added_tokens"]}
    names = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer = gguf.GGUFWriter(file, "qwen3")
    writer.add_context_length(64)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([{None: 1, True: 3, False: 4}[added.get(id)] for id in range(len(names))])
    writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=["qwen2", "llama3", "qwen35", "gpt2"])
def pair(request: Any, tmp_path_factory: Any) -> Iterator[tuple[tokenizers.Tokenizer, token_count.TokenCounter]]:
    pattern = {
        "qwen2": QWEN2,
        "llama3": LLAMA3,
        "qwen35": QWEN35,
        "gpt2": GPT2,
    }
    own = trained(pattern[request.param], nfc="qwen" in request.param, merge_whole=request.param == "llama3")
    yield own, token_count.load(saved(own, tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("text", NASTY)
def test_tiktoken_gives_the_ids_of_the_models_own_tokenizer(pair: Any, text: str) -> None:
    own, loaded = pair
    assert loaded.exact == "tiktoken"
    assert loaded.encode(text) == ids(own, text)
    assert loaded.count(text) == len(ids(own, text))


@PROPERTY
@given(text=TEXTS)
def test_any_text_has_the_ids_of_the_models_own_tokenizer(pair: Any, text: str) -> None:
    own, loaded = pair
    assert loaded.encode(text) == ids(own, text)


@PROPERTY
@given(text=TEXTS, limit=st.integers(0, 30))
def test_a_text_that_fits_is_never_found_too_long(pair: Any, text: str, limit: int) -> None:
    own, loaded = pair
    exact, counted = len(ids(own, text)), loaded.count(text, limit)
    assert counted == exact if exact <= limit else limit < counted <= exact


@PROPERTY
@given(text=TEXTS)
def test_counting_in_pieces_changes_no_count(pair: Any, text: str) -> None:
    own, loaded = pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_count, "PIECE", 1)
        assert loaded.cuttable
        assert loaded.count(text) == len(ids(own, text))


def test_a_long_text_is_given_up_after_a_piece(pair: Any) -> None:
    _, loaded = pair
    assert 4_000 < loaded.count("the lazy dog " * 10_000, 4_000) < 20_000


def test_added_tokens_in_a_text_are_one_token_as_the_engine_will_read_them(pair: Any) -> None:
    own, loaded = pair
    a, b = ids(own, "a"), ids(own, "b")
    assert loaded.encode(f"a{CONTROL}b") == [*a, own.token_to_id(CONTROL), *b]
    assert loaded.encode(PLAIN) == [own.token_to_id(PLAIN)]


def test_a_text_of_the_longest_tokens_fits_its_own_count(pair: Any) -> None:
    own, loaded = pair
    text = max((own.decode([id]) for id in own.get_vocab().values()), key=len) * 3
    exact = len(ids(own, text))
    assert loaded.count(text, exact) == exact


def test_nfc_never_makes_more_than_two_characters_into_one_byte() -> None:
    for code in (*range(0xD800), *range(0xE000, 0x110000)):
        assert len(unicodedata.normalize("NFD", chr(code))) <= 2 * len(chr(code).encode())


@pytest.mark.parametrize("blank", [" ", "\n", "a", "^", "日", " a", "é "])
def test_a_million_characters_of_one_kind_are_counted_in_seconds(tmp_path: Path, blank: str) -> None:
    own = trained(QWEN2)
    loaded = token_count.load(saved(own, tmp_path))
    text = (blank * 1_000_000)[:1_000_000] + "x"
    started = time.monotonic()
    counted = loaded.count(text)
    assert time.monotonic() - started < 20
    assert counted == len(ids(own, text))
    started = time.monotonic()
    assert 100 < loaded.count(text, 100) <= counted
    assert time.monotonic() - started < 5


def test_sentencepiece_and_metaspace_are_counted_with_tokenizers(tmp_path: Path) -> None:
    own = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    own.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    )
    own.enable_truncation(4)
    loaded = token_count.load(saved(own, tmp_path))
    own.no_truncation()
    assert loaded.exact == "tokenizers"
    for text in NASTY:
        assert loaded.count(text) == loaded.count(text, 3) == len(ids(own, text))


def test_merges_out_of_the_order_of_ids_are_counted_with_tokenizers(tmp_path: Path) -> None:
    folder = saved(trained(QWEN2), tmp_path)
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    first, second, *others = merges
    loaded = token_count.load(edited(folder, merges=[second, first, *others]))
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert loaded.exact == "tokenizers"
    assert [loaded.encode(text) for text in NASTY] == [ids(own, text) for text in NASTY]


def test_a_difference_that_only_shows_in_encoding_is_found_at_load(tmp_path: Path) -> None:
    alphabet = {letter: id for id, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    # tiktoken makes abc of a + bc too, a pair that is not among the merges
    vocabulary = {**alphabet, "bc": 256, "ab": 257, "abc": 258}
    model = models.BPE(vocabulary, [("b", "c"), ("a", "b"), ("ab", "c")])
    own = trained(QWEN2)
    own.model = model
    loaded = token_count.load(saved(own, tmp_path))
    assert loaded.exact == "tokenizers"
    assert loaded.encode("abc") == [alphabet["a"], 256]


def test_an_added_token_with_a_cut_inside_keeps_the_text_in_one_piece(tmp_path: Path) -> None:
    own = trained(QWEN2)
    own.add_tokens([tokenizers.AddedToken(SPACED, normalized=False, special=False)])
    loaded = token_count.load(saved(own, tmp_path))
    text = SPACED * 5_000
    assert loaded.exact == "tiktoken"
    assert loaded.count(text) == 5_000 == len(ids(own, text))


@pytest.mark.parametrize(("pre", "pattern"), [("qwen2", QWEN2), ("llama-bpe", LLAMA3), ("gpt-2", GPT2)])
def test_a_gguf_file_gives_the_ids_of_the_tokenizer_it_was_written_from(tmp_path: Path, pre: str, pattern: str) -> None:
    own = trained(pattern, merge_whole=pre == "llama-bpe")
    loaded = token_count.load(written(own, tmp_path / "model.gguf", pre))
    assert loaded.exact == "tiktoken"
    assert [loaded.encode(text) for text in [*NASTY, *CORPUS]] == [ids(own, text) for text in [*NASTY, *CORPUS]]


def test_a_gguf_file_split_in_two_steps_is_counted_with_tokenizers(tmp_path: Path) -> None:
    own = trained(GPT2)
    loaded = token_count.load(written(own, tmp_path / "model.gguf", "smollm"))
    assert loaded.exact == "tokenizers"
    assert loaded.count("12345") == 5


@pytest.mark.parametrize(
    ("pre", "kind", "sentence"),
    [
        ("default", "llama", "of kind 'llama'; have: gpt2"),
        ("klingon", "gpt2", "pre-tokenizer 'klingon'; have: qwen2"),
    ],
)
def test_a_gguf_tokenizer_of_another_kind_is_named(tmp_path: Path, pre: str, kind: str, sentence: str) -> None:
    file = written(trained(GPT2), tmp_path / "model.gguf", pre, kind)
    with pytest.raises(token_count.NoTokenizer, match=sentence):
        token_count.load(file)


@pytest.mark.parametrize("length", [0, 3, 24, 100, 2_000, 9_000])
def test_a_gguf_file_cut_short_is_damaged(tmp_path: Path, length: int) -> None:
    file = written(trained(GPT2), tmp_path / "model.gguf", "gpt-2")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(token_count.NoTokenizer, match="damaged" if length > 3 else "is not a gguf file"):
        token_count.load(file)


def test_a_gguf_file_of_nonsense_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    for type in (9, 77):
        file.write_bytes(struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"k", type) + b"\xff" * 40)
        with pytest.raises(token_count.NoTokenizer, match="damaged"):
            token_count.load(file)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(token_count.NoTokenizer, match=r"tokenizer\.json': No such file"):
        token_count.load(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"type": "Klingon"}}'])
def test_what_is_no_tokenizer_json_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(token_count.NoTokenizer, match=r"tokenizer\.json' is"):
        token_count.load(tmp_path)


def test_importing_loads_no_tokenizer_library() -> None:
    heavy = "{'tiktoken', 'tokenizers', 'transformers', 'torch', 'numpy', 'gguf'}"
    program = f"import sys, enginehouse.optimize.sources.token_count; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
