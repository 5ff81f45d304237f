"""The pocket model as it is committed: its size, its held-out set, its template and what it says."""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import jinja2
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from enginehouse.config.pocket.training import evaluate
from enginehouse.config.pocket.training.data import WEIGHTS, sample
from enginehouse.config.pocket.training.render import FOLDER, answer_text, prompt_text
from enginehouse.config.pocket.training.tool_skills import tool
from tests.bench import larger

ITEMS: list[dict[str, Any]] = [json.loads(line) for line in evaluate.EVAL.read_text(encoding="utf-8").splitlines()]
CALL = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Łódź"}}}
TOOLS = [tool(Random(0), "weather"), tool(Random(0), "time")]
USER = {"role": "user", "content": "What time is it in Łódź?"}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [{"role": "system", "content": "Answer briefly."}, USER],
    [USER, {"role": "assistant", "content": "<think>\nA city.\n</think>\n\nLate."}, USER],
    [
        USER,
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "12:00"},
        {"role": "tool", "content": "12:01"},
    ],
    [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12:00"},
        USER,
    ],
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def test_the_weights_are_at_most_12_megabytes() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 12_000_000


def test_the_held_out_set_covers_every_skill() -> None:
    counts = Counter(item["skill"] for item in ITEMS)
    assert set(counts) == set(WEIGHTS)
    assert min(counts.values()) >= 20
    assert len(ITEMS) >= 400


def test_no_held_out_prompt_occurs_in_training() -> None:
    rng = Random("any other seed")
    held_out = {json.dumps(item["messages"]) for item in ITEMS}
    trained = {json.dumps(sample(rng).messages[:-1]) for _ in range(20_000)}
    assert not held_out & trained


def test_the_expected_answers_are_right_by_the_scorer_and_others_wrong() -> None:
    assert all(evaluate.is_right(item, item["answer"]) for item in ITEMS)
    assert not any(evaluate.is_right(item, item["answer"] + " And more.") for item in ITEMS)


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("thinking", [False, True])
def test_the_sandbox_renders_the_template_as_transformers_does(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, thinking: bool
) -> None:
    theirs = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert prompt_text(messages, tools, thinking) == theirs
    assert "A city." not in theirs


def test_answers_render_in_history_as_they_were_written() -> None:
    answer = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    assert f"<|im_start|>assistant\n{answer_text(answer)}<|im_end|>\n" in prompt_text([USER, answer], TOOLS, False)


@pytest.mark.parametrize(
    "messages",
    [[{"role": "wizard", "content": "Hm"}], [USER, {"role": "system", "content": "Answer briefly."}]],
)
def test_an_unknown_role_and_a_late_system_message_are_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(jinja2.TemplateError):
        prompt_text(messages, None, False)


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    text = "".join(map(chr, range(32, 0x600))) + "你好 👋🏽 \x00\r\n\t<tool_call>{}"
    text = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_it_names_the_capital_of_france(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    prompt = prompt_text([{"role": "user", "content": "What is the capital of France?"}], None, False)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True) == "The capital of France is Paris."


def test_grown_to_27_million_parameters_it_says_the_same(tokenizer: Any) -> None:
    pocket = Qwen3ForCausalLM.from_pretrained(FOLDER)
    grown = larger.grow(pocket.float())
    assert 27e6 < sum(weight.numel() for weight in grown.parameters()) < 28e6
    assert larger.difference(pocket, grown, tokenizer) < 1e-3


def test_the_folder_is_complete() -> None:
    names = (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
    missing = [name for name in names if not (Path(FOLDER) / name).exists()]
    assert not missing
