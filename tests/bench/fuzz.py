"""Bodies nobody would send, to every route: no 5xx, no hang, errors in the dialect's shape, no slot lost.

`python -m tests.bench.fuzz [--bodies 10000] [--seed 0]`. A server that failed is replaced by a fresh one, so that the
next failure is its own; of each kind of failure the body is made as small as fails alike, and shown. Exits with 1 then.
"""

import argparse
import contextlib
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.bench.attack_lab import ECHO, RESPONSES, Lab, ask, chat
from tests.bench.fuzz_bodies import REFERENCE, SEEDS, bodies, smaller
from tests.serving import Served

ANSWER_SECONDS = 30
LEFT_SECONDS = 10  # in which a server learns that a client has left
TRIES = 60  # to make a body smaller
SHOWN = 2000  # bytes
BROKEN = re.compile(rb'engine_failed|internal_error|"type":"api_error"|"code":"server_error"')
LARGE = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")  # asked more, having more fields
GETS = ("/v1/models/{name}", "/v1/responses/{id}", "/v1/responses/{id}/input_items")
JSON = {"content-type": "application/json"}


class House:
    """A server with echo and pocket, and a fresh one after each failure."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._stack, self.starts = lab, ExitStack(), 0
        self.fresh()

    def fresh(self) -> None:
        self._stack.close()
        pocket = self._lab.pocket(context=512, slots=4)
        self.served: Served = self._stack.enter_context(self._lab.serve(ECHO | {"pocket": pocket}, load_timeout="20s"))
        self.client = self._stack.enter_context(httpx.Client(base_url=self.served.root, timeout=ANSWER_SECONDS))
        self.starts += 1
        self.answers()

    def answers(self) -> None:
        for model in ("echo", "pocket"):
            ask(self.served, chat(model=model, max_tokens=5)).raise_for_status()
        stored = {"model": "echo", "input": [{"role": "user", "content": "a", "id": REFERENCE["id"]}]}
        ask(self.served, stored, RESPONSES).raise_for_status()

    def close(self) -> None:
        self._stack.close()

    def post(self, route: str, body: bytes, leaves: bool) -> tuple[int, str]:
        """The status and what was wrong with it, if anything; the client that `leaves` reads one piece only."""
        try:
            with self.client.stream("POST", route, content=body, headers=JSON) as reply:
                began, data = time.monotonic(), b""
                for piece in reply.iter_bytes():
                    data += piece
                    if leaves and reply.status_code == 200:
                        return reply.status_code, ""
                    if time.monotonic() > began + ANSWER_SECONDS:
                        return reply.status_code, f"not done in {ANSWER_SECONDS} s"
        except httpx.TimeoutException:
            return 0, f"no answer in {ANSWER_SECONDS} s"
        except httpx.TransportError as error:
            return 0, f"closed: {type(error).__name__}"
        return reply.status_code, self.fault(route, reply.status_code, data)

    def fault(self, route: str, status: int, data: bytes) -> str:
        if status >= 500 or (status == 200 and BROKEN.search(data)):
            raised = [line.strip() for line in self.served.log if re.match(r"^[\w.]+(Error|Exception|Failed)\b", line)]
            return f"{data[-200:].decode(errors='replace')} {' '.join(raised[-1:])}"
        return "" if status == 200 else misshapen(route, data)

    def lost(self) -> str:
        """What is left under way though every client has gone."""
        until = time.monotonic() + LEFT_SECONDS
        while True:
            models = self.client.get("/v1/models").json()["data"]
            left = {model["id"]: model["status"]["requests"] for model in models if model["status"]["requests"]}
            if not left or time.monotonic() > until:
                return f"requests under way that nobody waits for: {left}" if left else ""
            time.sleep(0.1)


def misshapen(route: str, data: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        whole = json.loads(data)
        error = whole["error"]
        if route.startswith("/v1/messages"):
            if whole["type"] == "error" and error.keys() >= {"type", "message"} and error["message"]:
                return ""
        elif error.keys() == {"message", "type", "param", "code"} and error["message"]:
            return ""
    return f"not an error of its dialect: {data[:200]!r}"


def kind(route: str, status: int, fault: str) -> str:
    """Failures that differ in numbers and names only are one."""
    return f"{route} {status} {re.sub(r'[0-9]+|`[^`]*`', '#', fault)[-120:]}"


def least(house: House, route: str, body: bytes, like: str) -> bytes:
    """The smallest body found that fails alike."""
    tries = 0
    while True:
        for less in candidates(body):
            tries += 1
            status, fault = house.post(route, less, leaves=False)
            if fault:
                house.fresh()
            if fault and kind(route, status, fault) == like:
                body = less
                break
            if tries == TRIES:
                return body
        else:
            return body


def candidates(body: bytes) -> Iterator[bytes]:
    with contextlib.suppress(ValueError, RecursionError):
        for less in smaller(json.loads(body)):
            yield json.dumps(less).encode()


def main(count: int, start: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    statuses: dict[str, Counter[int]] = defaultdict(Counter)
    failures: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(House(Lab(Path(folder), 0, 0))) as house:
        api = schemathesis.openapi.from_url(f"{house.served.root}/schema/openapi.json")
        cases = {
            route: (op := api[route]["POST"]).as_strategy() | op.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            for route in SEEDS
        }
        asked = {route: bodies(route, cases[route].map(lambda case: case.body)) for route in SEEDS}
        read = st.sampled_from(GETS).flatmap(lambda route: api[route]["GET"].as_strategy())

        def failed(route: str, status: int, fault: str, body: bytes) -> None:
            failures[kind(route, status, fault)].append((route, body))
            house.fresh()

        @seed(start)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data(), st.sampled_from([*SEEDS, *LARGE * 2, "GET"]), st.integers(0, 9))
        def fuzz(data: Any, route: str, leaving: int) -> None:
            if route == "GET":
                reply = data.draw(read).call(base_url=house.served.root, timeout=ANSWER_SECONDS)
                status, fault, body = reply.status_code, house.fault(route, reply.status_code, reply.content), b""
            else:
                body = data.draw(asked[route])
                status, fault = house.post(route, body, leaves=not leaving)
            statuses[route][status] += 1
            if fault:
                failed(route, status, fault, body)
            elif sum(statuses[route].values()) % 100 == 0 and (left := house.lost()):
                failed(route, 0, left, body)

        fuzz()
        seconds = time.monotonic() - began
        house.answers()
        lost = house.lost()
        print(f"{sum(sum(of.values()) for of in statuses.values())} bodies in {seconds:.0f} s, {house.starts} servers")
        for route, of in sorted(statuses.items()):
            print(f"  {route}: {', '.join(f'{status} ×{number}' for status, number in sorted(of.items()))}")
        print(f"{len(failures)} kinds of failure{'; ' + lost if lost else ''}", flush=True)
        for like, found in failures.items():
            route, body = min(found, key=lambda one: len(one[1]))
            print(f"\n{len(found)} × {like}\n  sent:  {body[:SHOWN]!r}", flush=True)
            print(f"  least: {least(house, route, body, like)[:SHOWN]!r}", flush=True)
    return 1 if failures or lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(main(arguments.bodies, arguments.seed))
