"""lm-eval: local-chat-completions and local-completions, generating and by loglikelihood, on held-out capitals.

`--model local-chat-completions`, `--model_args model=NAME,base_url=URL/v1/chat/completions,tokenizer=FOLDER`
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

POCKET = Path(__file__).parents[2] / "config" / "pocket"
TASKS = Path(__file__).with_suffix("")
folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # where the tasks look for their data

items = [json.loads(line) for line in (POCKET / "eval.jsonl").read_text().splitlines()]
rows = [
    {"question": item["messages"][-1]["content"], "answer": item["answer"]}
    for item in items
    if item["answer"].startswith("The capital of ")  # with no thought before it
]
cities = list(dict.fromkeys(row["answer"].split()[-1] for row in rows))
for row in rows:
    after = cities.index(row["answer"].split()[-1]) + 1
    row["choices"] = [*(cities + cities)[after : after + 3], cities[after - 1]]
Path("capitals.jsonl").write_text("\n".join(map(json.dumps, rows)))


def score(kind: str, path: str, task: str, metric: str, **options: Any) -> float:
    results = lm_eval.simple_evaluate(
        kind,
        model_args={"model": "pocket", "base_url": f"{sys.argv[1]}/v1/{path}", "tokenizer": str(POCKET)},
        tasks=[task],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
        **options,
    )
    return float(results["results"][task][metric])


chat = score("local-chat-completions", "chat/completions", "capitals", "exact_match,none", apply_chat_template=True)
assert chat >= 0.9, chat
print(f"ok: local-chat-completions, {len(rows)} capitals generated: {chat:.1%} right to the letter")

text = score("local-completions", "completions", "capitals", "exact_match,none", apply_chat_template=True)
assert text == chat, (text, chat)
print(f"ok: local-completions, the template applied by lm-eval: {text:.1%}")

likely = score("local-completions", "completions", "capitals_choice", "acc,none", batch_size=8)
assert likely == 1, likely
print(f"ok: local-completions, {len(rows)} capitals chosen of four by loglikelihood: {likely:.1%}")
