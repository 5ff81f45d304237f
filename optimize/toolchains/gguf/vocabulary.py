"""From tokenizer.json to GGUF's tokenizer keys: byte-level BPE, and BPE that falls back to bytes (SentencePiece's)."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.optimize.artifact import CannotBuild
from enginehouse.optimize.sources.chat_template import template_of
from enginehouse.optimize.sources.files import read, read_json
from enginehouse.optimize.sources.tokenizer_json import GPT2, LLAMA3, QWEN2
from enginehouse.optimize.toolchains.gguf.config import Config, TokenIds, Value
from enginehouse.optimize.toolchains.gguf.text import KEY, TextRules

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "\u2581"  # SentencePiece writes blanks with it

UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# the regexes of the Splits in tokenizer.json -> llama.cpp's name for its hand-written equal
PRE_TOKENIZERS = {
    (QWEN2,): "qwen2",
    (LLAMA3,): "llama-bpe",
    (CASED % ("", "", r"\p{N}"),): "tekken",
    (CASED % (SHORTENED, SHORTENED, r"\p{N}{1,3}"),): "gpt-4o",
    (r"\p{N}", GPT2): "smollm",
}


class AddedToken(msgspec.Struct, frozen=True):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class Model(msgspec.Struct, frozen=True):
    """The BPE part of a tokenizer.json."""

    vocab: dict[str, int]
    merges: list[str | list[str]]
    byte_fallback: bool = False
    unk_token: str | None = None
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        split = (merge.split(" ") if isinstance(merge, str) else merge for merge in self.merges)
        return [(left, right) for left, right in split]


class TokenizerFile(msgspec.Struct, frozen=True):
    """What a tokenizer.json says."""

    model: Model
    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def tokenizer_keys(folder: Path, config: Config | TokenIds) -> dict[str, Value]:
    """GGUF's tokenizer keys and ours; raises CannotBuild for a tokenizer llama.cpp has no equal of."""
    tokenizer = read_tokenizer(folder)
    check_size(tokenizer, config.vocab_size)
    settings = read_json(folder / "tokenizer_config.json")
    keys = sentencepiece(tokenizer, config) if tokenizer.model.byte_fallback else byte_level(tokenizer, config)
    keys |= special_ids(folder, tokenizer, config, settings)
    template = template_of(folder, settings)
    if template:
        keys["tokenizer.chat_template"] = template
    return keys


def read_tokenizer(folder: Path) -> TokenizerFile:
    raw = read(folder / "tokenizer.json", dict[str, Any])
    if not raw:
        raise CannotBuild(
            "there is no 'tokenizer.json'; make it: AutoTokenizer.from_pretrained(..).save_pretrained(..)"
        )
    kind = raw.get("model", {}).get("type", "none")
    if kind != "BPE":
        raise CannotBuild(f"tokenizer kind '{kind}' is not known to the gguf converter; known: BPE")
    try:
        tokenizer = msgspec.convert(raw, TokenizerFile)
    except msgspec.ValidationError as error:
        raise CannotBuild(f"'tokenizer.json' is not as expected: {error}") from error
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if getattr(tokenizer.model, name):
            raise CannotBuild(f"tokenizer option '{name}' is not known to the gguf converter")
    for token in tokenizer.added_tokens:
        if token.single_word:
            raise CannotBuild(f"added token '{token.content}' matches whole words only, which llama.cpp cannot")
    return tokenizer


def check_size(tokenizer: TokenizerFile, size: int) -> None:
    ids = [*tokenizer.model.vocab.values(), *(token.id for token in tokenizer.added_tokens)]
    if max(ids) >= size:
        raise CannotBuild(f"the tokenizer has token ids up to {max(ids)}, the model's 'vocab_size' is {size}")


def byte_level(tokenizer: TokenizerFile, config: Config | TokenIds) -> dict[str, Value]:
    normalizers = [part["type"] for part in flatten(tokenizer.normalizer, "normalizers")]
    if set(normalizers) - {"NFC"}:
        raise CannotBuild(f"tokenizer normalizer '{normalizers[0]}' is not known to the gguf converter; known: NFC")
    tokens, types = listing(tokenizer, config.vocab_size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer(tokenizer),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in tokenizer.model.pairs],
        KEY: rules(tokenizer, nfc=bool(normalizers)),
    }


def pre_tokenizer(tokenizer: TokenizerFile) -> str:
    parts = flatten(tokenizer.pre_tokenizer, "pretokenizers")
    last = parts.pop() if parts else {}
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        by_regex = last.get("use_regex", True)
        match [part["type"] for part in parts]:
            case [] if by_regex:
                return "gpt-2"
            case ["Digits"] if by_regex and parts[0].get("individual_digits"):
                return "smollm"
            case ["Split"] | ["Split", "Split"] if not by_regex and all(map(splits_off, parts)):
                regexes = tuple(part["pattern"].get("Regex") for part in parts)
                if regexes in PRE_TOKENIZERS:
                    return PRE_TOKENIZERS[regexes]
                raise CannotBuild(f"pre-tokenizer regex '{regexes[-1]}' has no equal in llama.cpp")
    written = msgspec.json.encode(tokenizer.pre_tokenizer).decode()
    raise CannotBuild(f"pre-tokenizer '{written[:200]}' has no equal in llama.cpp")


def splits_off(part: dict[str, Any]) -> bool:
    return part["behavior"] == "Isolated" and not part.get("invert")


def sentencepiece(tokenizer: TokenizerFile, config: Config | TokenIds) -> dict[str, Value]:
    tokens, types = listing(tokenizer, config.vocab_size)
    vocab = tokenizer.model.vocab
    for id, token in enumerate(tokens):
        if types[id] == NORMAL and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[id] = BYTE
    if tokenizer.model.unk_token in vocab:
        types[vocab[tokenizer.model.unk_token]] = UNKNOWN
    # llama.cpp joins the pair with the highest score first, tokenizers the pair with the lowest rank
    scores = [0.0] * len(tokens)
    for rank, (left, right) in reversed(list(enumerate(tokenizer.model.pairs))):
        if left + right not in vocab:
            raise CannotBuild(f"tokenizer merge '{left} {right}' makes a token that is not in the vocabulary")
        scores[vocab[left + right]] = -float(rank)
    prefix, space = space_prefix(tokenizer)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefix,
        KEY: rules(tokenizer, space=space),
    }


def space_prefix(tokenizer: TokenizerFile) -> tuple[bool, str]:
    """Whether llama.cpp is to put a blank in front, and TextRules.space."""
    prepends = False
    for part in flatten(tokenizer.normalizer, "normalizers"):
        if part["type"] == "Prepend" and part["prepend"] == SPACE:
            prepends = True
        elif part["type"] != "Replace" or part["pattern"] != {"String": " "} or part["content"] != SPACE:
            raise CannotBuild(
                f"tokenizer normalizer '{part['type']}' is not known to the gguf converter; known: Prepend, Replace"
            )
    space = ""
    for part in flatten(tokenizer.pre_tokenizer, "pretokenizers"):
        if part["type"] == "Metaspace" and part["replacement"] == SPACE and not part.get("split"):
            space = {"never": "", "first": "first", "always": "each"}[part.get("prepend_scheme", "always")]
        elif part["type"] != "Split" or part["pattern"] != {"String": " "}:  # Gemma's, which finds no blank to split at
            raise CannotBuild(f"pre-tokenizer '{part['type']}' has no equal in llama.cpp")
    return prepends, space


def listing(tokenizer: TokenizerFile, size: int) -> tuple[list[str], list[int]]:
    """Token texts and types by id; llama.cpp aborts on two tokens of one text."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for content, id in tokenizer.model.vocab.items():
        tokens[id], types[id] = content, NORMAL
    for added in tokenizer.added_tokens:
        if SPACE in added.content and not added.special and added.content in tokenizer.model.vocab:
            continue  # Gemma's runs of blanks: met in text they are ordinary pieces
        tokens[added.id], types[added.id] = added.content, CONTROL if added.special else USER_DEFINED
    if len(set(tokens)) < size:
        twice = Counter(tokens).most_common(1)[0][0]
        raise CannotBuild(f"the tokenizer has the token '{twice}' twice, which llama.cpp cannot hold")
    return tokens, types


def rules(tokenizer: TokenizerFile, nfc: bool = False, space: str = "") -> str:
    added = tokenizer.added_tokens
    left, right = [t.content for t in added if t.lstrip], [t.content for t in added if t.rstrip]
    tokens = sorted((t.content for t in added), key=len, reverse=True) if left or right or space else []
    return msgspec.json.encode(TextRules(nfc, space, left, right, tokens)).decode()


def flatten(part: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [*part[members]] if part["type"] == "Sequence" else [part]


def special_ids(
    folder: Path, tokenizer: TokenizerFile, config: Config | TokenIds, settings: dict[str, Any]
) -> dict[str, Value]:
    ids = tokenizer.model.vocab | {token.content: token.id for token in tokenizer.added_tokens}
    named: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        token = settings.get(f"{role}_token")
        content = token.get("content") if isinstance(token, dict) else token
        configured = valid_ids(getattr(config, f"{role}_token_id", None), config.vocab_size)
        if content in ids:
            named[role] = ids[content]
        elif configured:
            named[role] = configured[0]
    generation = read_json(folder / "generation_config.json").get("eos_token_id")
    ends = valid_ids(generation if generation is not None else config.eos_token_id, config.vocab_size)
    if "eos" not in named:
        if not ends:  # llama.cpp would take token 11 for it
            raise CannotBuild("the model has no end token; give 'eos_token_id' in config.json")
        named["eos"] = ends[0]
    word = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys: dict[str, Value] = {f"tokenizer.ggml.{word[role]}_token_id": id for role, id in named.items()}
    first, last = added_around(tokenizer, settings)
    # llama.cpp guesses these two from the pre-tokenizer's name unless told
    keys |= {"tokenizer.ggml.add_bos_token": first and "bos" in named, "tokenizer.ggml.add_eos_token": last}
    # as JSON, for llama.cpp's interface gives out no array
    keys["enginehouse.eos_token_ids"] = msgspec.json.encode(sorted({named["eos"], *ends})).decode()
    return keys


def valid_ids(ids: int | list[int] | None, size: int) -> list[int]:
    """Some configs say -1 for none."""
    listed = [ids] if isinstance(ids, int) else ids or []
    return [id for id in listed if 0 <= id < size]


def added_around(tokenizer: TokenizerFile, settings: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a token is put before the text, and one after it."""
    before, after = False, False
    for part in flatten(tokenizer.post_processor, "processors"):
        if part["type"] == "TemplateProcessing":
            kinds = [next(iter(piece)) for piece in part["single"]]
            before, after = kinds[0] == "SpecialToken", kinds[-1] == "SpecialToken"
        elif part["type"] != "ByteLevel":
            raise CannotBuild(f"tokenizer post-processor '{part['type']}' is not known to the gguf converter")
    given_before, given_after = settings.get("add_bos_token"), settings.get("add_eos_token")
    return before if given_before is None else bool(given_before), after if given_after is None else bool(given_after)
