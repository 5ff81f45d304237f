"""The tokenizer beside an artifact in Hugging Face's layout: text -> ids, and the bytes of every id."""

import json
import re
from pathlib import Path
from typing import Any

from enginehouse.optimize.sources.byte_level import bytes_of
from enginehouse.optimize.sources.chat_template import template_of
from enginehouse.optimize.sources.files import read_json
from enginehouse.runtimes.grammar.matcher import GrammarCompiler
from enginehouse.runtimes.tool_calls import parsers

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "\u2581"  # SentencePiece writes blanks with it


class Vocabulary:
    """Reads tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json and generation_config.json."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings, config = read_json(folder / "tokenizer_config.json"), read_json(folder / "config.json")
        # A folder made for ONNX Runtime GenAI by others may hold only its own config, with the same keys but one.
        own = read_json(folder / "genai_config.json").get("model", {}) if not config else {}
        text_config = config.get("text_config") or config or own
        self.size = int(text_config.get("vocab_size") or self._tokenizer.get_vocab_size())  # width of the logits
        self.context_length = int(
            text_config.get("max_position_embeddings") or own.get("context_length") or 0
        )  # tokens; 0 where it is not said
        added = self._tokenizer.get_added_tokens_decoder()
        self.chat_template = template_of(folder, settings) or None
        shown = parsers.marks(self.chat_template)
        self.special = frozenset(id for id, token in added.items() if token.special and token.content not in shown)
        self.pieces = self._pieces(added)
        self.special_texts = tuple(token.content for token in added.values())
        self.longest_token = max(map(len, (*self.pieces, *[text.encode() for text in self.special_texts])))
        self.bos = self._bos()
        self.ends = self._ends(folder, text_config, settings)
        self.eos = self._tokenizer.id_to_token(self.ends[0]) or "" if self.ends else ""

    def encode(self, text: str) -> list[int]:
        """Special tokens in the text are recognized; BOS is put in front if the model wants one and has none yet."""
        if self.bos and not text.startswith(self.bos):
            text = self.bos + text
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def pieces_for(self, width: int) -> list[bytes]:
        """As many as logits of this width have ids."""
        return [*self.pieces[:width], *[b""] * (width - len(self.pieces))]

    def grammar_compiler(self, width: int) -> GrammarCompiler:
        """For logits of this width."""
        return GrammarCompiler(
            self.pieces_for(width), [id for id in sorted(self.special) if id < width], self.ends, self.encode
        )

    def _pieces(self, added: dict[int, Any]) -> list[bytes]:
        """b"" for a special token that marks nothing in an answer, and for ids without text."""
        decode = byte_level if "ByteLevel" in str(json.loads(self._tokenizer.to_str())["decoder"]) else sentencepiece
        pieces = [b""] * self.size
        for token, id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if id >= self.size or id in self.special:
                continue
            pieces[id] = added[id].content.encode() if id in added else decode(token)
        return pieces

    def _bos(self) -> str:
        """What the tokenizer puts before a text of its own accord."""
        plain, dressed = (self._tokenizer.encode("a", add_special_tokens=flag).ids for flag in (False, True))
        before = dressed[: len(dressed) - len(plain)] if dressed[-1:] == plain[-1:] else dressed[:1]
        return str(self._tokenizer.id_to_token(before[0])) if len(dressed) > len(plain) else ""

    def _ends(self, folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> tuple[int, ...]:
        """Ids that end an answer, the tokenizer's own first."""
        named = settings.get("eos_token")
        content = named.get("content") if isinstance(named, dict) else named
        own = self._tokenizer.token_to_id(content) if content else None
        listed = read_json(folder / "generation_config.json").get("eos_token_id", config.get("eos_token_id"))
        ids = [own, *(listed if isinstance(listed, list) else [listed])]
        return tuple(dict.fromkeys(id for id in ids if id is not None and 0 <= id < self.size))


def byte_level(token: str) -> bytes:
    try:
        return bytes_of(token)
    except UnicodeEncodeError:  # not written in bytes
        return token.encode()


def sentencepiece(token: str) -> bytes:
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
