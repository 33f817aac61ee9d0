"""Progress of a stage's worker, read from its metrics.jsonl for Prefect's page and for the console."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from minillm.worker.progress import Line, read_lines


@dataclass(frozen=True)
class Reached:
    """Progress of a stage at one moment."""

    step: int
    total: int
    """Steps in all; 0 if unknown."""
    figures: dict[str, float] = field(default_factory=dict)
    """Last value of each metric."""
    per_second: float | None = None
    """Steps per second in this attempt; None until two lines have come."""

    @property
    def share(self) -> float:
        """Share of the steps that is done, from 0 to 1."""
        return min(1.0, self.step / max(self.total, 1))

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at this pace; None if nobody can tell."""
        if not self.per_second or self.step >= self.total:
            return None
        return (self.total - self.step) / self.per_second


class MetricsFollower:
    """Reader of what is new in the metrics.jsonl of one attempt; for one thread."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._offset = 0
        self._began = time.time()
        self._first: Line | None = None
        self._last: Line | None = None
        self._figures: dict[str, float] = {}

    def read(self) -> Reached | None:
        """Read the lines since the last call and return the progress; None before the first line."""
        lines: list[Line] = []
        with contextlib.suppress(FileNotFoundError):  # before the first line, and once the result is in its place
            if self._offset > self._metrics.stat().st_size:  # begun anew
                self._offset = 0
            lines, self._offset = read_lines(self._metrics, self._offset)
        for line in lines:
            self._last = line
            self._figures |= line.metrics
            if self._first is None and line.time >= self._began:
                self._first = line
        if self._last is None:
            return None
        return Reached(self._last.step, self._last.total, dict(self._figures), self._pace(self._last))

    def _pace(self, last: Line) -> float | None:
        if self._first is None:
            return None
        seconds, steps = last.time - self._first.time, last.step - self._first.step
        return steps / seconds if seconds > 0 and steps > 0 else None
