"""What a worker writes to stderr: kept as a terminal would show it at last, and no more of it than has an end."""

import asyncio
import sys

from enginehouse.runtimes.worker.client import LINE_BYTES, STDERR_LINES, Worker

WRITES = """
import sys
for percent in range(101):
    sys.stderr.write(f"loading {percent} %\\r")
sys.stderr.write("\\nready\\r\\n")
sys.stderr.write("x" * (32 << 20) + "y")
sys.stderr.write("\\nthe end")
"""


def kept_of(program: str) -> list[str]:
    async def read() -> list[str]:
        worker = Worker("any")
        worker._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stderr=asyncio.subprocess.PIPE
        )
        await worker._keep_stderr()
        await worker._process.wait()
        return list(worker._stderr)

    return asyncio.run(read())


def test_bars_are_kept_as_they_ended_and_lines_without_end_are_cut() -> None:
    bar, ready, long, end = kept_of(WRITES)
    assert (bar, ready, end) == ("loading 100 %", "ready", "the end")
    assert len(long) <= 2 * LINE_BYTES
    assert long.endswith("y")


def test_the_last_lines_are_kept() -> None:
    lines = kept_of("import sys; [print(n, file=sys.stderr) for n in range(1000)]")
    assert lines == [str(n) for n in range(1000 - STDERR_LINES, 1000)]
