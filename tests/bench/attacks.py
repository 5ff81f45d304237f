"""Every attack of the review, each on a server of its own beside honest streams: what it got, and what they felt.

`python -m tests.bench.attacks [--only A7 A10-text ...] [--streams 8] [--seconds 10]`. An attack is made again and again
until its time is up. It is "mended" when meanwhile no honest stream fails or stands still for a second, all together
keep half the speed that they had just before, and 99 of 100 /health checks are answered in 0.1 s; one that asks for an
answer, when the answer is right.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import attack_answers, attack_stalls  # noqa: F401  they register theirs
from tests.bench.attack_lab import ATTACKS, ECHO, Attack, Lab, Target, ask, chat
from tests.bench.honest import Clients, seen

WARM_SECONDS, QUIET_SECONDS = 2, 5
GAP_SECONDS, SPEED, HEALTH_SECONDS = 1.0, 0.5, 0.1
EXTRA_SLOTS = 8  # for the attacker
HEADER = ("attack", "sends", "got", "should be", "longest gap", "speed", "/health p99", "max", "verdict")


def row(attack: Attack, lab: Lab) -> list[str]:
    if not attack.should:
        return stall(attack, lab)
    answered, right = attack.run(lab)
    return [answered, attack.should, "", "", "", "", verdict(right)]


def stall(attack: Attack, lab: Lab) -> list[str]:
    hung = {"source": str(lab.folder / "hung"), "runtime": "llamacpp"}
    model = lab.pocket(attack.runtime, slots=lab.streams + EXTRA_SLOTS)
    with lab.serve({"pocket": model, "hung": hung} | ECHO) as served:
        for name in ("pocket", "echo"):
            ask(served, chat(model=name)).raise_for_status()
        with Clients(served.root, "pocket", lab.streams) as clients:
            time.sleep(WARM_SECONDS + QUIET_SECONDS)
            began, target = time.monotonic(), Target(served, lab.seconds)
            withstood = attack.run(target)
            ended = time.monotonic()
    quiet, during = (seen(clients.record, *span) for span in ((began - QUIET_SECONDS, began), (began, ended)))
    got = ", ".join(f"{status} ×{count}" for status, count in target.got.items())
    speed, p99 = during.speed / quiet.speed if quiet.speed else 0, during.percentile(0.99)
    well = not during.failures and during.gap <= GAP_SECONDS and speed >= SPEED
    felt = [f"{during.gap:.1f} s" + f", {during.failures} failed" * bool(during.failures), f"{speed:.2f}"]
    if not attack.streams:
        well, felt = True, [f"({cell})" for cell in felt]
    health = [f"{seconds:.3f} s" for seconds in (p99, during.health[-1])]
    return [got, "", *felt, *health, verdict(well and p99 <= HEALTH_SECONDS and withstood is not False)]


def verdict(well: bool) -> str:
    return "mended" if well else "OPEN"


def main(names: list[str], streams: int, seconds: float) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers and folders go then, too
    order = sorted(ATTACKS.values(), key=lambda attack: int(attack.name[1:].split("-")[0]))
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        hung = Path(folder) / "hung"
        hung.mkdir()
        os.mkfifo(hung / "config.json")
        (hung / "model.safetensors").write_bytes(b"")
        lab = Lab(Path(folder), seconds, streams)
        for attack in order:
            if not names or {attack.name, attack.name.split("-")[0]} & {*names}:
                cells = [attack.name, str(attack.run.__doc__), *row(attack, lab)]
                print(f"| {' | '.join(' '.join(cell.replace('|', '∣').split()) for cell in cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="A10: all that begin so")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10, help="of each attack; a request may take ten more")
    arguments = parser.parse_args()
    main(arguments.only, arguments.streams, arguments.seconds)
