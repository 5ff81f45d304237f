"""What was learnt on a host outlives the server, and belongs to that host and that source alone."""

import logging
import threading
import time
from pathlib import Path

import pytest

from enginehouse.runtimes.pool.records import DEATHS, Records
from enginehouse.runtimes.pool.routing import Figures

FIGURES = Figures(400.0, 50.0, 120.0, 8, 1.0, 0.5, 900 << 20)
CANDIDATE = "llamacpp/cpu/Q8_0"


def measure(records: Records, candidate: str = CANDIDATE) -> None:
    records.measured("source", candidate, 8, "host", "artifact", FIGURES)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "deep" / "records.sqlite")


def test_figures_come_back_for_the_same_source_slots_and_host_only(records: Records, tmp_path: Path) -> None:
    measure(records)
    again = Records(tmp_path / "deep" / "records.sqlite")
    assert again.measurements("source", 8, "host")[CANDIDATE].figures == FIGURES
    for elsewhere in (("other", 8, "host"), ("source", 4, "host"), ("source", 8, "newer driver")):
        assert again.measurements(*elsewhere) == {}


def test_a_candidate_that_keeps_dying_is_parked_and_one_that_died_once_is_not(records: Records) -> None:
    for died in range(1, DEATHS + 1):
        records.failed("source", CANDIDATE, "host", "death", "killed by SIGSEGV")
        parked = records.parked("source", "host")
        assert (CANDIDATE in parked) == (died >= DEATHS)
    assert "parked until" in parked[CANDIDATE].why
    assert f"died {DEATHS} times: killed by SIGSEGV" in parked[CANDIDATE].in_full
    assert records.parked("source", "other host") == records.parked("other", "host") == {}


@pytest.mark.parametrize("kind", ["build", "load", "smoke"])
def test_a_candidate_that_cannot_be_had_is_parked_at_once(records: Records, kind: str) -> None:
    records.failed("source", CANDIDATE, "host", kind, "no such kernel")
    assert f"{kind} failed: no such kernel" in records.parked("source", "host")[CANDIDATE].in_full


def test_a_clock_that_was_set_back_parks_nobody_for_long(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7 * 24 * 3600)
    records.failed("source", CANDIDATE, "host", "load", "no such kernel")
    monkeypatch.setattr(time, "time", lambda: now)
    assert records.parked("source", "host") == {}


def test_what_engines_wrote_when_they_died_is_for_the_user_alone(records: Records, tmp_path: Path) -> None:
    records.failed("source", CANDIDATE, "host", "load", "no such kernel")
    assert (tmp_path / "deep" / "records.sqlite").stat().st_mode & 0o777 == 0o600


def test_what_the_first_engine_said_stays(records: Records) -> None:
    assert records.smoke_answer("source") is None
    records.record_smoke_answer("source", [1, 2, 3])
    records.record_smoke_answer("source", [4])
    assert records.smoke_answer("source") == [1, 2, 3]


def test_a_file_that_cannot_be_used_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "enginehouse")  # a converter that ran in this process may have raised it
    (tmp_path / "broken.sqlite").write_bytes(b"not a database at all" * 100)
    for file in (tmp_path / "broken.sqlite", tmp_path / "broken.sqlite" / "inside.sqlite"):
        records = Records(file)
        measure(records)
        assert records.measurements("source", 8, "host") == {}
        assert records.parked("source", "host") == {}
    assert "is not kept" in caplog.text


def test_many_writers_at_once_lose_nothing(records: Records) -> None:
    """Two servers may share a cache."""
    names = [f"candidate {n}" for n in range(8)]
    writers = [threading.Thread(target=measure, args=(records, name)) for name in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert set(records.measurements("source", 8, "host")) == set(names)
