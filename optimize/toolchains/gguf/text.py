"""What a text must go through before llama.cpp's tokenizer gives the ids the checkpoint's own tokenizer gives."""

import functools
import re
import unicodedata

import msgspec

KEY = "enginehouse.text"  # a string in every GGUF of ours: TextRules as JSON
BLANK = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class TextRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """llama.cpp normalizes nothing, and its added tokens swallow no blanks; see `prepare_text`."""

    nfc: bool = False
    space: str = ""  # put in front of the "first" stretch of text, of "each" one between added tokens, of none
    strip_left: list[str] = []  # added tokens that swallow the blanks before them
    strip_right: list[str] = []
    tokens: list[str] = []  # every added token, longest first, where one of the rules above depends on them


def prepare_text(text: str, rules: TextRules) -> str:
    """The text to hand to llama_tokenize with add_special=False, parse_special=True."""
    parts = added_tokens(tuple(rules.tokens)).split(text) if rules.tokens else [text]
    for i in range(0, len(parts), 2):  # text, token, text, .. text
        part = parts[i]
        if i > 0 and parts[i - 1] in rules.strip_right:
            part = part.lstrip(BLANK)
        if i + 1 < len(parts) and parts[i + 1] in rules.strip_left:
            part = part.rstrip(BLANK)
        if rules.nfc:
            part = unicodedata.normalize("NFC", part)
        if part and not part.startswith(" ") and (rules.space == "each" or (rules.space == "first" and i == 0)):
            part = " " + part
        parts[i] = part
    return "".join(parts)


@functools.lru_cache(maxsize=16)
def added_tokens(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(map(re.escape, tokens)) + ")")
