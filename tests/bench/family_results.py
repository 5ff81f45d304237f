"""What came of each family on each engine: kept in docs/families.json, and the page docs/families.md made of it."""

from pathlib import Path

import msgspec

from enginehouse.config.schema import Optimize

FILE = Path(__file__).parents[2] / "docs" / "families.json"
PAGE = FILE.with_suffix(".md")
BEGIN, END = "<!-- made of families.json by the command above -->\n", "<!-- end -->\n"
MEDIAN, LARGE, OUTLIERS = 0.01, 0.05, 2  # of what is right; argued in DECISIONS.md
TRIAL = Optimize().bf16.divergence  # what a family on no list may have


class Computed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="outcome", tag="computed"):
    """How far the engine in 32 bits is from transformers: differences of a log-probability at each place of the text,
    the largest over the vocabulary."""

    largest: float
    median: float
    divergence: float  # mean over the places, nats
    proven: bool  # served without a trial
    outliers: int = 0  # places where the difference is LARGE or more
    converter: str = ""  # where a format has several

    @property
    def right(self) -> bool:
        return self.median < MEDIAN and self.outliers <= OUTLIERS


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


def tables(results: Results) -> str:
    """The generated part of the page."""
    engines = sorted(results.tools)
    rows = [["family", *engines], ["---"] * (1 + len(engines))]
    for name, found in results.families.items():
        rows.append([name, *(cell(found.get(engine)) for engine in engines)])
    for word in ("right", "wrong", "refused"):
        numbers = [sum(verdict(found.get(engine)) == word for found in results.families.values()) for engine in engines]
        rows.append([f"**{word}**, of {len(results.families)}", *map(str, numbers)])
    sentences = [["engine", "family", "why it is refused"], ["---"] * 3]
    for engine in engines:
        for name, found in results.families.items():
            if isinstance(outcome := found.get(engine), Refused):
                sentences.append([engine, name, outcome.sentence.replace("|", "\\|").replace("<", "\\<")])
    used = {f"{name} {version}" for tools in results.tools.values() for name, version in tools.items()}
    versions = f"With {', '.join(sorted(used))}; on {results.processor}."
    return "\n\n".join([table(rows), table(sentences), versions]) + "\n"


def table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(outcome: Computed | Refused | None) -> str:
    found = verdict(outcome)
    if not isinstance(outcome, Computed):
        return found
    figure = "" if outcome.right else f" {outcome.largest:.2g}"
    return f"{'' if outcome.proven else 'tried: '}{found}{figure}"


def verdict(outcome: Computed | Refused | None) -> str:
    match outcome:
        case None:
            return "not run"
        case Refused():
            return "refused"
        case Computed(right=True):
            return "right"
        case Computed():
            return "wrong" if outcome.proven or outcome.divergence <= TRIAL else "refused"


def write_page() -> None:
    before, _, after = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{tables(read())}{END}{after.partition(END)[2]}")
