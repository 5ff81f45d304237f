"""What lm-eval says of a checkpoint and of each engine's artifacts of it: `python -m tests.bench.harness FOLDER
[ENGINE:PRECISION ...]`.

The task is made from pocket's word lists: capitals, countries, opposites, months and days, each chosen of four by
loglikelihood. Wants `make clients`, whose Python runs lm-eval.
"""

import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

CLIENTS = Path(os.environ.get("ENGINEHOUSE_CLIENTS", "~/.cache/enginehouse/clients")).expanduser()
SPREAD = {
    "llamacpp": ["BF16", "Q8_0", "Q4_K_M"],
    "openvino": ["INT8_ASYM", "INT4_ASYM_G64", "INT4_ASYM_G32_MIXED"],
    "onnx": ["INT8_B32", "INT4_B32_H8", "INT4_B32_MIXED"],
    "mlx": ["4bit-g64", "mixed_4_6-g32"],
}
ARTIFACTS = [f"{runtime}:{precision}" for runtime, precisions in SPREAD.items() for precision in precisions]
TASK = """\
task: choices
dataset_path: json
dataset_kwargs: {data_files: choices.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: choices
doc_to_target: 0
metric_list: [{metric: acc}]
"""


def items() -> list[dict[str, object]]:
    from enginehouse.config.pocket.training import words

    pairs = {
        "The capital of {} is": words.CAPITALS,
        "{} is the capital of": {city: country for country, city in words.CAPITALS.items()},
        "The opposite of '{}' is '": words.OPPOSITES,
        "The month that comes after {} is": dict(zip(words.MONTHS, [*words.MONTHS[1:], words.MONTHS[0]], strict=True)),
        "The day that comes after {} is": dict(zip(words.DAYS, [*words.DAYS[1:], words.DAYS[0]], strict=True)),
    }
    chance, made = random.Random(0), list[dict[str, object]]()
    for text, answers in pairs.items():
        before = "" if text.endswith("'") else " "
        for given, answer in answers.items():
            others = chance.sample(sorted({*answers.values()} - {answer, given}), 3)
            made.append({"text": text.format(given), "choices": [before + choice for choice in (answer, *others)]})
    return made


def main(source: str, artifacts: list[str]) -> None:
    from tests.serving import serve

    models = {
        one.replace(":", "-"): dict(zip(("runtime", "precision"), one.split(":"), strict=True)) for one in artifacts
    }
    with tempfile.TemporaryDirectory() as work:
        folder, made = Path(work), items()
        (folder / "choices.jsonl").write_text("\n".join(map(json.dumps, made)))
        (folder / "choices.yaml").write_text(TASK)
        with serve(folder, {name: {"source": source, **model} for name, model in models.items()}) as server:
            print(f"| artifact | of {len(made)} right |\n|---|---|", flush=True)
            for name in models:
                command = [str(CLIENTS / "bin" / "python"), "-P", __file__, server.root, name, source]
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
                print(
                    f"| {name} | {done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr[-300:]} |",
                    flush=True,
                )


def ask(root: str, name: str, tokenizer: str) -> None:
    """In the clients' environment, in a folder with the task."""
    lm_eval, tasks = importlib.import_module("lm_eval"), importlib.import_module("lm_eval.tasks")
    results = lm_eval.simple_evaluate(
        "local-completions",
        model_args={"model": name, "base_url": f"{root}/v1/completions", "tokenizer": tokenizer},
        tasks=["choices"],
        task_manager=tasks.TaskManager(include_path=".", include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
        batch_size=8,
    )
    print(f"{results['results']['choices']['acc,none']:.1%}")


if __name__ == "__main__":
    if "://" in "".join(sys.argv[1:2]):
        ask(*sys.argv[1:])
    else:
        main(sys.argv[1], sys.argv[2:] or ARTIFACTS)
