"""When a worker is given up: it is stopped, or what it does will not end. Decides only; client.py asks and kills."""

import msgspec

from enginehouse.runtimes.worker.protocol import Pong

PING_SECONDS = 2.5  # between two questions
SILENT_SECONDS = 10.0  # without an answer, of a process that uses no processor either: SIGSTOP, a hung disk
STUCK_SECONDS = 60.0  # in one step or message, while it uses no processor: a hung driver
SPINNING_SECONDS = 600.0  # the same while it computes: a large model may read a chunk of a prompt for minutes
IDLE = 0.01  # of a processor: what pings themselves take is less


class Watchdog:
    """Counts rounds and reads no clock: where the server itself stood still, a worker is not to blame for it."""

    def __init__(self) -> None:
        self._turns = self._cpu_seconds = 0.0  # when last seen
        self._silent = self._stuck = self._spinning = 0.0  # seconds, for so long

    def judge(self, look: "Look") -> str:
        """Why the worker is to be killed; "" as long as it is not."""
        pong, idle = look.pong, look.cpu_seconds - self._cpu_seconds < IDLE * PING_SECONDS
        self._cpu_seconds = look.cpu_seconds
        if pong and (pong.turns != self._turns or not pong.busy):
            self._turns = pong.turns
            self._silent = self._stuck = self._spinning = 0.0
            return ""
        self._silent = self._silent + PING_SECONDS if idle and not pong else 0.0
        self._stuck = self._stuck + PING_SECONDS if idle else 0.0
        self._spinning += PING_SECONDS
        if self._silent >= SILENT_SECONDS:
            return f"it answered nothing for {SILENT_SECONDS:.0f} s"
        if self._stuck >= STUCK_SECONDS:
            return f"it got no further for {STUCK_SECONDS:.0f} s"
        return f"it got no further for {SPINNING_SECONDS:.0f} s" if self._spinning >= SPINNING_SECONDS else ""


class Look(msgspec.Struct, frozen=True):
    """What is seen of a worker in one round."""

    pong: Pong | None  # to the ping of this round
    cpu_seconds: float  # used since it began
