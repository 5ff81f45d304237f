"""What the quality gate reads: the model's own texts where its folder has some, else its own answers (answers.py), else
quality.txt."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from enginehouse.optimize.artifact import CannotBuild, Source
from enginehouse.optimize.sources.chat_template import Sandbox, bounded, sandbox, template_of
from enginehouse.optimize.sources.files import read_json

OURS = Path(__file__).parent / "quality.txt"
BETWEEN = "\n%%%\n"  # passages of quality.txt
ANSWERS = 60  # taken of eval.jsonl
WINDOW = 256  # tokens of plain text read at a time
WINDOWS = 10  # of a long calibration.txt
LONGEST = 1024  # tokens of a conversation; what is longer is left out


class Passage(msgspec.Struct, frozen=True):
    """Compared at every token of `text`, or after the first where nothing goes before it."""

    text: str
    prompt: str = ""  # as the chat template renders it


class Tokens(msgspec.Struct, frozen=True):
    """A sequence as every engine reads it."""

    ids: list[int]
    first: int  # the place from which on the ids are compared; those before it are only read


def passages(source: Source) -> list[Passage]:
    """eval.jsonl says best what a model is for: what it is asked, and what it should say. [] where there is nothing."""
    folder = Path(source.path)
    if (folder / "eval.jsonl").exists():
        return conversations(folder)
    plain = folder / "calibration.txt"
    if plain.exists():
        return [Passage(plain.read_text(encoding="utf-8"))]
    return []


def ours() -> list[Passage]:
    return [Passage(text) for text in OURS.read_text(encoding="utf-8").split(BETWEEN)]


def digest(texts: Sequence[Passage]) -> str:
    return hashlib.blake2b(msgspec.json.encode(texts), digest_size=10).hexdigest()


def conversations(folder: Path) -> list[Passage]:
    """Lines spread evenly over the file. Fields beside `messages` and `answer` go to the template."""
    lines = [line for line in (folder / "eval.jsonl").read_text(encoding="utf-8").splitlines() if line.strip()]
    count = min(ANSWERS, len(lines))
    template, variables = chat_template(folder)
    found = []
    for number in (at * len(lines) // count for at in range(count)):
        try:
            item = json.loads(lines[number])
            messages, answer = item.pop("messages"), item.pop("answer")
            with bounded():
                prompt = template.render(**(variables | item), messages=messages, add_generation_prompt=True)
        except (ValueError, KeyError, TypeError, jinja2.TemplateError) as error:
            raise CannotBuild(f"'{folder / 'eval.jsonl'}', line {number + 1}, cannot be rendered: {error!r}") from error
        found.append(Passage(answer + variables["eos_token"], prompt))
    return found


def chat_template(folder: Path) -> tuple[jinja2.Template, dict[str, str]]:
    """And the tokens that templates name."""
    text = template_of(folder, read_json(folder / "tokenizer_config.json"))
    if not text:
        raise CannotBuild(f"'{folder}' has an eval.jsonl, but no chat template to render it with")
    return same_every_day().from_string(text), named_tokens(folder)


def same_every_day() -> Sandbox:
    return sandbox(lambda form: "1 January 2026")


def named_tokens(folder: Path) -> dict[str, str]:
    settings = read_json(folder / "tokenizer_config.json")
    return {name: token_text(settings.get(name)) for name in ("bos_token", "eos_token")}


def token_text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token or "")


def tokens(source: Source, texts: Sequence[Passage]) -> tuple[list[Tokens], int]:
    """And the size of the vocabulary: a model may have logits for more ids, which stand for nothing."""
    if source.kind == "gguf":
        from enginehouse.optimize.toolchains.gguf.logits import tokenize

        plain, size = tokenize(Path(source.path), [passage.text for passage in texts])
        return [piece for ids in plain for piece in windows(ids)], size
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(Path(source.path) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found: list[Tokens] = []
    for passage in texts:
        ids = tokenizer.encode(passage.text, add_special_tokens=not passage.prompt).ids
        if passage.prompt:
            before = tokenizer.encode(passage.prompt, add_special_tokens=False).ids
            found += [Tokens(before + ids, len(before))] if len(before) + len(ids) <= LONGEST else []
        else:
            found += windows(ids)
    return found, max(tokenizer.get_vocab().values()) + 1


def windows(ids: list[int]) -> list[Tokens]:
    """A whole passage, or stretches spread evenly over a long text."""
    starts = range(0, max(len(ids) - 1, 1), WINDOW)
    count = min(WINDOWS, len(starts))
    chosen = (starts[at * len(starts) // count] for at in range(count))
    return [Tokens(ids[start : start + WINDOW], 1) for start in chosen if len(ids) - start > 1]
