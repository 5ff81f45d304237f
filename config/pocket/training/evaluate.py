"""Scores the pocket model on eval.jsonl: with transformers, or over HTTP against a running server.

    python -m enginehouse.config.pocket.training.evaluate [--model FOLDER]
    python -m enginehouse.config.pocket.training.evaluate --base-url http://127.0.0.1:8080/v1 --model-name pocket
    python -m enginehouse.config.pocket.training.evaluate --write          # draws eval.jsonl anew

An answer counts when it is the expected text exactly, thought and calls included. A story, of which there are many,
counts when it begins and ends right, tells of the animal asked for and stays with its hero's name.
"""

import argparse
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from enginehouse.config.pocket.training import words
from enginehouse.config.pocket.training.data import WEIGHTS, sample
from enginehouse.config.pocket.training.render import FOLDER, answer_text, prompt_text

EVAL = FOLDER / "eval.jsonl"
ITEMS_PER_SKILL = 24
MAX_TOKENS = 400

Item = dict[str, Any]


def main() -> None:
    arguments = _arguments()
    if arguments.write:
        write()
        return
    items = [json.loads(line) for line in EVAL.read_text(encoding="utf-8").splitlines()]
    if arguments.base_url:
        answers = ask_server(items, arguments.base_url, arguments.model_name)
    else:
        answers = ask_transformers(items, arguments.model)
    report(items, answers, arguments.wrong)


def report(items: list[Item], answers: list[str], wrong: int) -> None:
    """Prints a table per skill, the total and the first few wrong answers."""
    verdicts = [is_right(item, answer) for item, answer in zip(items, answers, strict=True)]
    for skill in WEIGHTS:
        of_skill = [right for item, right in zip(items, verdicts, strict=True) if item["skill"] == skill]
        print(f"{skill:12} {sum(of_skill):4} / {len(of_skill):<4} {sum(of_skill) / len(of_skill):7.1%}")
    print(f"{'total':12} {sum(verdicts):4} / {len(verdicts):<4} {sum(verdicts) / len(verdicts):7.1%}")
    missed = [(item, answer) for item, answer, right in zip(items, answers, verdicts, strict=True) if not right]
    for item, answer in missed[:wrong]:
        print(f"\n{item['skill']}: {item['messages'][-1]['content']!r}\n  want {item['answer']!r}\n  got  {answer!r}")


def is_right(item: Item, answer: str) -> bool:
    """Exact match, or for a story its rule."""
    rule = item.get("rule")
    if rule is None:
        return answer.strip() == str(item["answer"]).strip()
    story = answer.rpartition("</think>")[2].strip()
    begin = re.match(rule["begins"], story)
    if not begin or not story.endswith("The end."):
        return False
    animals = {animal for animal in words.ANIMALS if re.search(rf"\b{animal}\b", story)}
    return story.count(begin["name"]) >= 4 and f"{begin['name']} the {rule['animal']}" in story and len(animals) <= 2


def ask_transformers(items: list[Item], folder: Path) -> list[str]:
    """Greedy answers; weights and arithmetic in bf16, batches of prompts of like length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    prompts = [prompt_text(item["messages"], item["tools"], item["enable_thinking"]) for item in items]
    order = sorted(range(len(items)), key=lambda at: (item_is_long(items[at]), len(prompts[at])))
    answers = [""] * len(items)
    for begin in range(0, len(order), 32):
        batch = order[begin : begin + 32]
        inputs = tokenizer([prompts[at] for at in batch], return_tensors="pt", padding=True)
        with torch.inference_mode():
            outputs = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        for at, output in zip(batch, outputs[:, inputs["input_ids"].shape[1] :], strict=True):
            answers[at] = tokenizer.decode(output, skip_special_tokens=True)
    return answers


def item_is_long(item: Item) -> bool:
    """Stories are generated together: a batch takes as long as its longest answer."""
    return "rule" in item


def ask_server(items: list[Item], base_url: str, model: str) -> list[str]:
    """Answers of an OpenAI-compatible server, eight requests at a time."""
    import httpx

    def ask(item: Item) -> str:
        body = {
            "model": model,
            "messages": [as_sent(message) for message in item["messages"]],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "chat_template_kwargs": {"enable_thinking": item["enable_thinking"]},
        }
        if item["tools"]:
            body["tools"] = item["tools"]
        response = client.post("/chat/completions", json=body)
        response.raise_for_status()
        return rendered(response.json()["choices"][0]["message"])

    with httpx.Client(base_url=base_url, timeout=600) as client, ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, items))


def as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """In OpenAI's shape, where a call has an id and its arguments are text."""
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"])},
        }
        for number, call in enumerate(message.get("tool_calls") or [])
    ]
    return message | {"tool_calls": calls} if calls else message


def rendered(message: dict[str, Any]) -> str:
    """The text the model wrote, from a server's message, whether or not the server has taken it apart."""
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return answer_text(
        {
            "content": (message.get("content") or "").strip(),
            "reasoning_content": thought.strip(),
            "tool_calls": message.get("tool_calls"),
        }
    )


def write() -> None:
    """Draws the held-out set and writes it to eval.jsonl.

    What two wordings have in common once sloppily written ("Spell lake", from "Spell lake." and "spell Lake") may be in
    the training stream although its key is held out: prompts are also compared with as many samples as training draws.
    """
    training = Random("training")
    trained = {json.dumps(sample(training).messages[:-1]) for _ in range(200_000)}
    rng = Random("evaluation")
    lines: list[str] = []
    for skill in WEIGHTS:
        prompts: set[str] = set()
        while len(prompts) < ITEMS_PER_SKILL:
            conversation = sample(rng, evaluation=True, skill=skill)
            item = _item(conversation.messages, conversation.tools, conversation.thinking, skill)
            prompt = json.dumps(item["messages"])
            if prompt not in prompts and prompt not in trained:
                prompts.add(prompt)
                lines.append(json.dumps(item, ensure_ascii=False))
    EVAL.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _item(messages: list[dict[str, Any]], tools: list[Any] | None, thinking: bool, skill: str) -> Item:
    item: Item = {
        "skill": skill,
        "messages": messages[:-1],
        "tools": tools,
        "enable_thinking": thinking,
        "answer": answer_text(messages[-1]),
    }
    story = re.match(r"Once upon a time there \w+ (an?) (\w+) named (\w+)\.", messages[-1]["content"])
    if story:
        article, animal, name = story.groups()
        name = name if name in messages[-2]["content"] else r"\w+"
        item["rule"] = {
            "begins": rf"Once upon a time there (was|lived) {article} {animal} named (?P<name>{name})\.",
            "animal": animal,
        }
    return item


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="score the pocket model on its held-out set")
    parser.add_argument("--model", type=Path, default=FOLDER, help="Hugging Face folder")
    parser.add_argument("--base-url", help="score this OpenAI-compatible server instead, e.g. http://127.0.0.1:8080/v1")
    parser.add_argument("--model-name", default="pocket")
    parser.add_argument("--wrong", type=int, default=10, help="how many wrong answers to print")
    parser.add_argument("--write", action="store_true", help="write eval.jsonl anew and stop")
    return parser.parse_args()


if __name__ == "__main__":
    main()
