"""How far a stage's worker is, from the metrics.jsonl that it writes: read once for Prefect's page and the console."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from minillm.worker.progress import Line, read_lines

NEAR_END = 65536
"""Bytes of metrics.jsonl that are read at first."""


@dataclass(frozen=True)
class Reached:
    """What the last lines tell."""

    step: int
    total: int
    """0 where nobody knows."""
    figures: dict[str, float] = field(default_factory=dict)
    """The last value of each metric that is new."""
    per_second: float | None = None
    """Steps, in this attempt."""

    @property
    def share(self) -> float:
        """Share done, from 0 to 1."""
        return min(1.0, self.step / max(self.total, 1))

    @property
    def seconds_left(self) -> float | None:
        """Time left at this pace."""
        if not self.per_second or self.step >= self.total:
            return None
        return (self.total - self.step) / self.per_second


class MetricsFollower:
    """Reads what is new in one attempt's metrics.jsonl, from near its end on; not for two threads at once."""

    def __init__(self, metrics: Path) -> None:
        self._metrics = metrics
        self._offset: int | None = None
        self._began = time.time()
        self._first: Line | None = None
        self._last: Line | None = None
        self._figures: dict[str, float] = {}

    def read(self) -> Reached | None:
        """How far it is; None before there is a line."""
        lines: list[Line] = []
        with contextlib.suppress(FileNotFoundError):  # before the first line, and once the result is in its place
            if self._offset is None or self._offset > self._metrics.stat().st_size:
                self._offset = _line_start(self._metrics)
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


def _line_start(path: Path) -> int:
    """Offset of a line near the end."""
    start = max(0, path.stat().st_size - NEAR_END)
    with path.open("rb") as stream:
        stream.seek(start)
        return start + len(stream.readline()) if start else 0
