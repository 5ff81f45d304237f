"""kill -9 of the worker at random moments of a greedy stream: how many answers are whole, and equal to the undisturbed.

`python -m tests.bench.kills [--times 20] [--runtime llamacpp]`. In 32 bits, where another batch shape changes no token.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.serving import Served, serve

TOKENS = 600
EXACT = {"llamacpp": {"kv_precision": "f32", "flash_attention": "off"}}
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about a fox."}]


def stream(served: Served) -> Any:
    return served.client.chat.completions.create(
        model="pocket",
        messages=MESSAGES,
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
        extra_body={"ignore_eos": True},
    )


def text(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def main(times: int, runtime: str) -> None:
    model = {"source": "builtin:pocket", "runtime": runtime, "precision": "f32", "options": EXACT}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), {"pocket": model}) as served:
        text(stream(served))
        began = time.perf_counter()
        whole = text(stream(served))
        seconds = time.perf_counter() - began
        chance, equal = random.Random(0), 0
        for number in range(times):
            chunks, moment = iter(stream(served)), time.perf_counter() + chance.uniform(0, 0.9 * seconds)
            parts = []
            for chunk in chunks:
                parts.append(chunk)
                if time.perf_counter() > moment:
                    served.worker().kill()
                    break
            after = len(parts)
            parts += chunks
            same = text(parts) == whole
            equal += same
            print(f"{number + 1}: killed after {after} chunks, {'equal' if same else 'DIFFERENT'}", flush=True)
        print(f"{equal} of {times} answers whole and equal to the undisturbed one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--runtime", default="llamacpp")
    arguments = parser.parse_args()
    main(arguments.times, arguments.runtime)
