"""`python -m tests.optimize.child`: a child process that does as test_child_process.py bids it."""

import os
import signal
import subprocess
import sys
import time

import msgspec

from enginehouse.optimize.artifact import CannotBuild, Report
from enginehouse.optimize.child_process import carry_out


class Order(msgspec.Struct):
    act: str
    text: str = ""


class Result(msgspec.Struct, tag="result"):
    pid: int
    characters: int


def work(order: Order, report: Report) -> Result:
    report("convert", 0.5)
    print("a tool talks")
    os.system("echo so does a tool of it")
    match order.act:
        case "refuse":
            raise CannotBuild("this cannot be", environment=True)
        case "fail":
            raise RuntimeError("nobody expected this\nat all")
        case "leave":
            os._exit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "loop":
            subprocess.run([sys.executable, "-c", "while True: pass"])
        case "slow":
            for step in range(60):
                report("convert", step / 60)
                until = time.monotonic() + 0.03
                while time.monotonic() < until:
                    pass
        case "linger":
            report(str(os.getpid()), 1.0)
            signal.pause()
    report("convert", 1.0)
    return Result(os.getpid(), len(order.text))


if __name__ == "__main__":
    carry_out(Order, work)
