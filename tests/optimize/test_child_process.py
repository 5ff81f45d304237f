"""A child process does what it is ordered to, says how it goes, and never outlives who ordered it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from enginehouse.optimize import child_process
from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.child_process import run, run_blocking
from tests.optimize.child import Order, Result

HERE = Path(__file__).parents[2]
Run = Callable[[Order, Report], Result]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))


def quiet(stage: str, fraction: float) -> None: ...


def awaited(order: Order, report: Report = quiet, module: str = "tests.optimize.child") -> Result:
    return asyncio.run(run(module, order, Result, report, "the child"))


def blocking(order: Order, report: Report = quiet, module: str = "tests.optimize.child") -> Result:
    return run_blocking(module, order, Result, report, "the child")


@pytest.fixture(params=[awaited, blocking])
def do(request: pytest.FixtureRequest) -> Run:
    way: Run = request.param
    return way


def test_progress_and_the_result_come_back_whatever_tools_print(do: Run, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, float]] = []
    result = do(Order("work", "four"), lambda stage, fraction: seen.append((stage, fraction)))
    assert result.characters == 4
    assert result.pid != os.getpid()
    assert seen == [("convert", 0.5), ("convert", 1.0)]
    assert {"a tool talks", "so does a tool of it"} <= set(capfd.readouterr().err.splitlines())


def test_an_order_may_be_longer_than_a_pipe(do: Run) -> None:
    assert do(Order("work", "x" * 1_000_000), quiet).characters == 1_000_000


def test_a_child_that_is_stopped_is_ended_and_named(do: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(child_process, "HELD_SECONDS", 0.2)
    with pytest.raises(CannotBuild, match="the child stood still for 0 s and was ended") as caught:
        do(Order("stop"), quiet)
    assert caught.value.environment


def test_a_child_that_computes_without_end_is_ended_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "LOOK_SECONDS", 0.1)
    with pytest.raises(CannotBuild, match="the child computed for 1 s without getting any further") as caught:
        asyncio.run(run("tests.optimize.child", Order("loop"), Result, quiet, "the child", patience=1))
    assert not caught.value.environment
    assert not any("while True: pass" in process.cmdline() for process in psutil.Process().children(recursive=True))


def test_a_child_that_gets_further_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "LOOK_SECONDS", 0.1)
    assert asyncio.run(run("tests.optimize.child", Order("slow"), Result, quiet, "the child", patience=1)).pid


def test_what_the_child_refuses_is_raised_here(do: Run) -> None:
    with pytest.raises(CannotBuild, match=r"^this cannot be$") as caught:
        do(Order("refuse"), quiet)
    assert caught.value.environment


@pytest.mark.parametrize(("act", "status", "killed"), [("leave", 3, False), ("die", -9, True)])
def test_a_child_that_ends_without_a_result_is_said_to(do: Run, act: str, status: int, killed: bool) -> None:
    with pytest.raises(CannotBuild, match=f"^the child ended with status {status} in the middle of its work") as caught:
        do(Order(act), quiet)
    assert caught.value.environment == killed


def test_what_a_tool_raises_is_one_sentence(do: Run) -> None:
    with pytest.raises(CannotBuild, match=r"^RuntimeError: nobody expected this; see the log$") as caught:
        do(Order("fail"), quiet)
    assert not caught.value.environment


def test_a_child_that_does_not_even_begin_is_said_to_whatever_it_was_to_read() -> None:
    for way in (awaited, blocking):
        with pytest.raises(CannotBuild, match="ended with status 1 "):
            way(Order("work", "x" * 1_000_000), module="tests.optimize.no_such_module")


def test_nothing_in_the_working_directory_is_imported(do: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("types.py", "msgspec.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('the working directory was imported from')")
    monkeypatch.chdir(tmp_path)
    assert do(Order("work"), quiet).characters == 0


def test_a_child_that_is_given_up_is_ended() -> None:
    async def steps() -> int:
        stages: asyncio.Queue[str] = asyncio.Queue()
        report: Report = lambda stage, fraction: stages.put_nowait(stage)  # noqa: E731
        working = asyncio.create_task(run("tests.optimize.child", Order("linger"), Result, report, "the child"))
        assert await stages.get() == "convert"
        pid = int(await stages.get())
        working.cancel()
        await asyncio.wait([working])
        assert working.cancelled()
        return pid

    assert not psutil.pid_exists(asyncio.run(steps()))


def test_a_child_ends_with_its_parent() -> None:
    program = (
        "from tests.optimize.test_child_process import blocking; from tests.optimize.child import Order\n"
        "blocking(Order('linger'), lambda stage, fraction: print(stage, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "convert\n"
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        child.wait(timeout=30)
