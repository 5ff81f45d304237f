"""How far each model is on its way to being loaded or measured."""

import time
from collections.abc import Mapping

from enginehouse.optimize.progress import UNKNOWN, LoadProgress, Progress


class ProgressTracker:
    def __init__(self) -> None:
        self._progress: dict[tuple[str, str], LoadProgress] = {}  # by model and candidate; the last to move at the end

    def report(self, name: str, candidate: str, stage: str, fraction: float) -> None:
        """`candidate` is "" as long as the model's source is looked for."""
        progress = self._progress.pop((name, candidate), None) or LoadProgress(UNKNOWN, time.monotonic())
        progress.report(stage, fraction, time.monotonic())
        self._progress[name, candidate] = progress

    def expect(self, key: tuple[str, str], estimates: Mapping[str, float]) -> None:
        """What lies before a candidate, in seconds by stage; the fetching of its source lies behind it."""
        progress = self._progress.pop((key[0], ""), None) or LoadProgress(UNKNOWN, time.monotonic())
        progress.expect(estimates, time.monotonic())
        self._progress[key] = progress

    def forget(self, key: tuple[str, str]) -> None:
        self._progress.pop(key, None)

    def of(self, name: str) -> Progress:
        found = [progress for (model, _), progress in self._progress.items() if model == name]
        return found[-1].at(time.monotonic()) if found else Progress("start", 0.0, sum(UNKNOWN.values()))

    def describe(self, name: str) -> str:
        now = self.of(name)
        return f"{now.stage}, {now.percent:.0f} %, about {now.seconds_left:.0f} s left"
