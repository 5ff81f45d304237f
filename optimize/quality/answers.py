"""A model's own answers, which the gate reads where its folder has no texts: what a model is used for looks like them,
and a text by others is partly noise to it. Generated once, by the source itself, to prompts.txt."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from enginehouse.optimize.artifact import Source
from enginehouse.optimize.quality.texts import Tokens, named_tokens, same_every_day
from enginehouse.optimize.sources.chat_template import bounded, template_of
from enginehouse.optimize.sources.files import read_json

PROMPTS = Path(__file__).parent / "prompts.txt"
VERSION = "answers-1"  # goes up with every change to how they are made
ANSWER_TOKENS = 64
TEMPERATURE, TOP_K, SEED = 0.8, 40, 1  # close to what people sample with
BEST = 28  # answers kept: those in languages that the model does not know are the ones it is least sure of
STRIDE = 11  # prompts.txt has languages side by side: so they are mixed, and a few are like all


class Prompts(msgspec.Struct, frozen=True):
    ids: list[list[int]]
    ends: list[int]  # ids that end an answer
    vocabulary_size: int


def questions() -> list[str]:
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    return [lines[at * STRIDE % len(lines)] for at in range(len(lines))]


def prompts_of(source: Source) -> Prompts:
    """As the model's chat template renders them; where it has none, as they are."""
    if source.kind == "gguf":
        from enginehouse.optimize.toolchains.gguf.answers import chat_template, vocabulary_of

        file = Path(source.path)
        template, named = chat_template(file)
        texts = [in_chat(template, named, question) for question in questions()]
        return Prompts(*vocabulary_of(file, texts, special=bool(template)))
    import tokenizers

    folder = Path(source.path)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    template, named = template_of(folder, read_json(folder / "tokenizer_config.json")), named_tokens(folder)
    texts = [in_chat(template, named, question) for question in questions()]
    ids = [tokenizer.encode(text, add_special_tokens=not template).ids for text in texts]
    return Prompts(ids, end_tokens(folder), max(tokenizer.get_vocab().values()) + 1)


def in_chat(template: str, named: dict[str, str], question: str) -> str:
    """The prompt of a chat that begins with it; itself where there is no template, or one that refuses it."""
    messages = [{"role": "user", "content": question}]
    try:
        with bounded():
            return same_every_day().from_string(template).render(**named, messages=messages, add_generation_prompt=True)
    except Exception:  # a template is foreign code
        return question


def end_tokens(folder: Path) -> list[int]:
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if found is not None:
            return found if isinstance(found, list) else [found]
    return []


def fitting(prompts: Prompts, context: int) -> list[list[int]]:
    """Those that leave room for an answer; `context`: 0 where it is not known."""
    return [ids for ids in prompts.ids if not context or len(ids) + ANSWER_TOKENS <= context]


def best(sequences: Sequence[Tokens], sureness: Sequence[float]) -> list[int]:
    """The places of the answers that the model was surest of, in their order."""
    ranked = sorted(range(len(sequences)), key=lambda at: -sureness[at])
    return sorted(ranked[:BEST])
