"""What came of each family on each engine: kept in docs/families.json, and the page docs/families.md made of it."""

from pathlib import Path

import msgspec

FILE = Path(__file__).parents[2] / "docs" / "families.json"
PAGE = FILE.with_suffix(".md")
LARGEST, MEDIAN = 0.05, 0.01  # of what is right; argued in DECISIONS.md


class Computed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="outcome", tag="computed"):
    """How far the engine in 32 bits is from transformers: differences of a log-probability at each place of the text,
    the largest over the vocabulary."""

    largest: float
    median: float
    divergence: float  # mean over the places, nats
    proven: bool  # served without a trial
    converter: str = ""  # where a format has several

    @property
    def right(self) -> bool:
        return self.largest < LARGEST and self.median < MEDIAN


class Refused(msgspec.Struct, frozen=True, tag_field="outcome", tag="refused"):
    sentence: str
    proven: bool


class Results(msgspec.Struct, omit_defaults=True):
    processor: str = ""
    reference: dict[str, str] = {}  # distribution -> version
    tools: dict[str, dict[str, str]] = {}  # by engine
    families: dict[str, dict[str, Computed | Refused]] = {}  # name -> engine -> what came of it


def read() -> Results:
    return msgspec.json.decode(FILE.read_bytes(), type=Results) if FILE.exists() else Results()


def write(results: Results) -> None:
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")
