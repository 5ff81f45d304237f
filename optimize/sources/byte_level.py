"""Byte-level BPE's alphabet: each byte of a token is written as one printable letter."""

PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
# For str.translate. A letter that stands for no byte becomes one that Latin-1 has not.
BYTES = (
    dict.fromkeys(range(256), 0xFFFF)
    | dict(zip(PRINTABLE, PRINTABLE, strict=True))
    | {256 + index: byte for index, byte in enumerate(OTHERS)}
)


def bytes_of(token: str) -> bytes:
    """Raises UnicodeEncodeError for what is not written in bytes."""
    return token.translate(BYTES).encode("latin-1")
