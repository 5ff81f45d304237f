"""The first request for a model on a cold cache, with `wait` and with `serve-now`; and the change under four streams.

`python -m tests.bench.first_load [SOURCE] [--precision int4]`; without a source, the shape of Qwen3 0.6B. Prints
seconds to the first token, then, for serve-now, what four streams saw of the change.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench.http import HOME
from tests.bench.shape import make
from tests.serving import Served, serve

STREAMS, TOKENS = 4, 128


def main(source: str, precision: str) -> None:
    for first_load in ("wait", "serve-now"):
        models = {"model": {"source": source, "precision": precision, "context": 2048}}
        with tempfile.TemporaryDirectory() as folder:
            with serve(Path(folder), models, optimize={"first_load": first_load}, load_timeout="forever") as served:
                began = time.perf_counter()
                who, first, _ = ask(served, began)
                print(f"{first_load}: first token after {first:.1f} s, from {who}", flush=True)
                if first_load == "serve-now":
                    change(served, began, who)


def ask(served: Served, began: float, prompt: str = "hello " * 40) -> tuple[str, float, float]:
    """Who answers, when the first token comes, and the longest silence after it. Seconds."""
    messages: list[Any] = [{"role": "user", "content": prompt}]
    extra = {"ignore_eos": True}
    chunks = served.client.with_options(timeout=600).chat.completions.with_raw_response.create(
        model="model", messages=messages, temperature=0, max_tokens=TOKENS, stream=True, extra_body=extra
    )
    who, first, last, longest, count = "", 0.0, 0.0, 0.0, 0
    for line in chunks.http_response.iter_lines():
        now = time.perf_counter() - began
        if line.startswith(": ") and "answers" in line:
            who = line.removeprefix(": ").partition(" answers")[0]
        if line.startswith("data: {"):
            count += 1
            if count == 2:  # the opening comes before the first token
                first = now
            elif count > 2:
                longest = max(longest, now - last)
            last = now
    assert '"finish_reason"' not in who
    who = who or f"{chunks.headers['x-enginehouse-runtime']} {chunks.headers['x-enginehouse-precision']}"
    return who, first, longest


def change(served: Served, began: float, before: str) -> None:
    rows: list[tuple[float, str, float, float]] = []
    changed = threading.Event()

    def streams(number: int) -> None:
        more = 2  # after the change
        while more:
            start = time.perf_counter()
            who, first, longest = ask(served, start, f"stream {number} " * 20)
            rows.append((start - began, who, first, longest))
            if who != before:
                changed.set()
            more -= changed.is_set()

    threads = [threading.Thread(target=streams, args=(number,)) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for who in dict.fromkeys(row[1] for row in sorted(rows)):
        of = [row for row in rows if row[1] == who]
        print(
            f"{who}: {len(of)} streams, begun {min(r[0] for r in of):.1f} to {max(r[0] for r in of):.1f} s after the "
            f"first; at most {max(r[2] for r in of):.2f} s to the first token, {max(r[3] for r in of):.2f} s after it"
        )
    print(f"all {len(rows)} streams ended whole")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?")
    parser.add_argument("--precision", default="int4")
    arguments = parser.parse_args()
    main(arguments.source or str(make(HOME / "qwen3-0.6b-shape")), arguments.precision)
