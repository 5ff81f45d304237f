"""`bench` tries an engine's settings, and what is best here is how it is loaded from then on."""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import msgspec
import pytest

from enginehouse.runtimes.contract import HALF_THE_THREADS, USUAL, Setting
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.pool import tuning
from enginehouse.runtimes.pool.records import FILE
from enginehouse.runtimes.pool.routing import Figures
from tests.serving import serve

USUALLY = Figures(400.0, 50.0, 120.0, 8, 1.0, 0.5, 900 << 20)
SPIN = next(one for one in runtimes()["llamacpp"].settings if one.environment)


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({"": 50, "half the threads": 80, "spin": 70}, "half the threads"),
        ({"": 50, "half the threads": 30, "spin": 51}, ""),  # a twentieth is what chance may bring
        ({"": 50, "half the threads": 30, "spin": 60}, "spin"),
    ],
)
def test_a_setting_is_taken_where_it_is_worth_it(speeds: Mapping[str, float], best: str) -> None:
    asked = list[str]()

    async def timed(setting: Setting) -> Figures:
        asked.append(setting.name)
        slowed = 0.5 if len(asked) == 1 else 1.0  # whoever is the first is disturbed
        speed = speeds[setting.name] * slowed
        return msgspec.structs.replace(USUALLY, decode=speed, decode_crowd=speed, setting=setting.name)

    settings = (HALF_THE_THREADS, Setting("spin"))
    found = asyncio.run(tuning.timed_in_turn(settings, timed, "balanced"))
    assert tuning.best(found, "balanced").setting == best
    assert asked == 2 * [USUAL.name, "half the threads", "spin"]


def test_bench_tries_the_settings_of_the_best_engine_and_it_is_loaded_in_what_was_best(tmp_path: Path) -> None:
    model = {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int8"}
    config = tmp_path / "enginehouse.yaml"
    config.write_text(json.dumps({"models": {"pocket": model}, "cache_dir": str(tmp_path / "cache")}))
    command = [
        sys.executable,
        "-m",
        "enginehouse.server.cli.main",
        "bench",
        "pocket",
        "--config",
        str(config),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    names = {"as usual", *(setting.name for setting in runtimes()["llamacpp"].settings)}
    assert json.loads(done.stdout)["settings"]["llamacpp/cpu/Q8_0"].keys() == names
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / FILE)) as records, records:
        (blob,) = records.execute("select figures from measurements").fetchone()
        figures = msgspec.structs.replace(msgspec.json.decode(blob, type=Figures), setting=SPIN.name)
        records.execute("update measurements set figures = ?", (msgspec.json.encode(figures),))
    with serve(tmp_path, {"pocket": model}) as served:
        served.client.completions.create(model="pocket", prompt="Hello", max_tokens=1)
        assert served.worker().environ()["GOMP_SPINCOUNT"] == SPIN.environment["GOMP_SPINCOUNT"]
        explained = httpx.get(f"{served.root}/v1/models/pocket/explain").json()
        assert f"with {SPIN.name}" in explained["reason"]
