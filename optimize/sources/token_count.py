"""Token counts of ordinary text from a model's own vocabulary, exact and before the model is loaded."""

import logging
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginehouse.optimize.sources.byte_level import bytes_of
from enginehouse.optimize.sources.tokenizer_json import GPT2, LLAMA3, QWEN2, QWEN35, tokenizer_json
from enginehouse.optimize.sources.tokenizer_json import NoTokenizer as NoTokenizer

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)

PIECE = 16_384  # characters encoded at a time; small, so that an over-long text is given up early
SAFE_CUT = re.compile(r"(?<=\S) ")

# In these no piece holds a space after something that is not white space, and nothing looks back: a text
# may be cut before such a space, and its tokens are those of the two parts.
CUTTABLE = {GPT2, QWEN2, LLAMA3, QWEN35}


class NotExact(Exception):
    """tiktoken would not give this tokenizer's tokens."""


class TokenCounter(msgspec.Struct, frozen=True):
    """Added tokens in a text (`<|im_start|>`, `<think>`) are one token each, as engines read a rendered prompt."""

    exact: str  # the library that encodes: "tiktoken" | "tokenizers"
    encode: Callable[[str], list[int]]  # no beginning- or end-of-text token is added
    characters_per_token: int  # no token stands for more; 0 where that is not known
    cuttable: bool  # at SAFE_CUT

    def count(self, text: str, limit: int | None = None) -> int:
        """The tokens of the text, exactly; once they are seen to be more than `limit`, some number above
        `limit` that is no more than the count. A count up to `limit` is therefore always exact.

        Seen first by length alone; then by encoding piece after piece where the text can be cut without
        changing its tokens. A `tokenizers` encoding knows neither (its normalizer and its unknown token
        may swallow any length of text): it takes the whole text always.
        """
        if limit is not None and self.characters_per_token:
            least = len(text) // self.characters_per_token
            if least > limit:
                return least
        total = 0
        for piece in _pieces(text) if self.cuttable else [text]:
            total += len(self.encode(piece))
            if limit is not None and total > limit:
                break
        return total


def load(path: Path) -> TokenCounter:
    """The tokenizer of a Hugging Face folder, a tokenizer.json or a .gguf file. Takes about a second for
    150 000 tokens, most of it holding the GIL; call it in a thread. Raises NoTokenizer."""
    file = path / "tokenizer.json" if path.is_dir() else path
    document = tokenizer_json(file)
    reference = _reference(document, file)
    try:
        return _tiktoken(document, reference, file)
    except NotExact as reason:
        log.info("'%s' is counted with tokenizers: %s", file, reason)
        return TokenCounter("tokenizers", _encoder(reference), characters_per_token=0, cuttable=False)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while cut := SAFE_CUT.search(text, start + PIECE):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _reference(document: dict[str, Any], file: Path) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        reference = tokenizers.Tokenizer.from_str(msgspec.json.encode(document).decode())
    except Exception as error:  # tokenizers raises Exception itself
        raise NoTokenizer(f"'{file}' is no tokenizer that tokenizers can read: {error}") from error
    reference.no_truncation()
    reference.no_padding()
    return reference


def _encoder(reference: "tokenizers.Tokenizer") -> Callable[[str], list[int]]:
    return lambda text: reference.encode(text, add_special_tokens=False).ids


def _tiktoken(document: dict[str, Any], reference: "tokenizers.Tokenizer", file: Path) -> TokenCounter:
    import tiktoken

    pattern = _pattern(document["pre_tokenizer"])
    composed = _composes(document["normalizer"])
    parsed = {token["content"]: token["id"] for token in _parsed(document, composed)}
    added = {token["content"] for token in document["added_tokens"]}
    ranks = _ranks(document["model"], added)
    try:
        encoding = tiktoken.Encoding(file.name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError as error:
        raise NotExact(f"the pattern is not one of Rust's: {error}") from error
    # The longest first: that one of two which start together is the token.
    alternatives = "|".join(map(re.escape, sorted(parsed, key=len, reverse=True)))
    split = re.compile(f"({alternatives})" if parsed else r"(?!)").split

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for part in split(text):
            if part in parsed:
                ids.append(parsed[part])
            else:
                ids += encoding.encode_ordinary(unicodedata.normalize("NFC", part) if composed else part)
        return ids

    def encode_or_ask(text: str) -> list[int]:
        # fancy-regex overflows its stack on a run of about a million blanks, and tiktoken turns that into
        # a panic (tiktoken issue 15), which is no Exception. tokenizers is slower but has no such limit;
        # it is built anew because kept it would take more memory than the encoding itself.
        try:
            return encode(text)
        except BaseException as panic:
            if type(panic).__name__ != "PanicException":
                raise
            return _encoder(_reference(tokenizer_json(file), file))(text)

    _compare(encode, reference, [*ranks], [*added])
    return TokenCounter(
        "tiktoken",
        encode_or_ask,
        # NFC makes at most 1.5 characters into one byte of UTF-8.
        characters_per_token=max(map(len, [*ranks, *parsed])) * (2 if composed else 1),
        cuttable=pattern in CUTTABLE and not any(map(SAFE_CUT.search, parsed)),
    )


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str:
    """One isolating Split, or ByteLevel's own regex."""
    match (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer]):
        case [{"type": "ByteLevel", "add_prefix_space": False, **rest}] if rest.get("use_regex", True):
            return GPT2
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return regex
    raise NotExact("its pre-tokenizer is not one split and bytes")


def _composes(normalizer: dict[str, Any] | None) -> bool:
    """True for NFC, False for no normalizer."""
    match (normalizer or {}).get("normalizers", [normalizer] if normalizer else []):
        case []:
            return False
        case [{"type": "NFC"}]:
            return True
    raise NotExact("it normalizes by other rules than NFC")


def _parsed(document: dict[str, Any], composed: bool) -> list[dict[str, Any]]:
    """The added tokens, if they are seen in a text wherever they stand."""
    tokens: list[dict[str, Any]] = document["added_tokens"]
    for token in tokens:
        if token["lstrip"] or token["rstrip"] or token["single_word"] or (composed and token["normalized"]):
            raise NotExact(f"the added token {token['content']!r} depends on what stands around it")
    return tokens


def _ranks(model: dict[str, Any], added: set[str]) -> dict[bytes, int]:
    """tiktoken merges the adjacent pair whose joint token has the lowest id, BPE the one which comes first
    among its merges: the same when merges make tokens in the order of their ids, and make all of them.
    Not a proof, as any two tokens may make up a third, listed or not: hence _compare."""
    options = ("byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model.get("type") != "BPE" or any(model.get(option) for option in options):
        raise NotExact("it is no plain byte-level BPE")
    vocabulary: dict[str, int] = {token: id for token, id in model["vocab"].items() if token not in added}
    try:
        ranks = {bytes_of(token): id for token, id in vocabulary.items()}
    except UnicodeEncodeError as error:
        raise NotExact("its tokens are not bytes") from error
    made: set[int] = set()
    last = -1
    for merge in model["merges"]:
        id = vocabulary.get(merge.replace(" ", "") if isinstance(merge, str) else "".join(merge), -1)
        if id < last:
            raise NotExact("its merges are not in the order of its ids")
        made.add(id)
        last = id
    if len(ranks) - len(made) != 256 or sum(len(token) == 1 for token in ranks) != 256:
        raise NotExact("its tokens are not the 256 bytes and what merges make of them")
    return ranks


NASTY = (
    "I'LL we've 'Tis 12345 ½ ٣٤ x² 日本語 \u1112\u1161\u11ab é e\u0301 \u212b क्षि ก็ שלום "
    "👩\u200d👩\u200d👧🏽 \x00\x1c\x85\u00a0\u200b\u2028\u3000\ufeff\ufffd \t\r\n\r\n  \n  x   y!!!\n\n??\n "
    "</s>{}  if (a==b){\n\t\treturn;}  \n "
)


def _compare(
    encode: Callable[[str], list[int]],
    reference: "tokenizers.Tokenizer",
    tokens: list[bytes],
    added: list[str],
) -> None:
    chance = random.Random(0)
    texts = [NASTY, NASTY.join(added[:100])]
    for _ in range(300):
        texts.append(b"".join(chance.choices(tokens, k=chance.randint(1, 12))).decode(errors="ignore"))
    for text, expected in zip(texts, reference.encode_batch(texts, add_special_tokens=False), strict=True):
        if encode(text) != expected.ids:
            raise NotExact(f"tiktoken differs on {text[:40]!r}")
