"""Progress reports of a worker: lines in its log and an append-only metrics.jsonl."""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from minillm.store.artifacts import METRICS
from minillm.words import progress_line

LOGGER = logging.getLogger(__name__)
_WARNED: set[Path] = set()
"""Files whose damaged lines this process has already warned about."""


class Line(BaseModel):
    """One line of metrics.jsonl or system_metrics.jsonl."""

    model_config = ConfigDict(strict=True)

    time: FiniteFloat
    """Unix time, seconds."""
    step: int = Field(ge=0, lt=2**63)
    total: int = Field(default=0, ge=0)
    """Steps in all; 0 if unknown."""
    metrics: dict[str, float]


class Progress:
    """Writer of the progress and metrics of one stage. It does nothing on processes other than rank 0.

    A line is {"time", "step", "total", "metrics": {name: value}}. A resumed stage repeats the steps since its last
    checkpoint, so readers keep the last value of each (name, step).
    """

    def __init__(self, output: Path, total: int, unit: str) -> None:
        self.path = output / METRICS
        self.total = total
        self.unit = unit
        self.silent = int(os.environ.get("RANK", "0")) != 0
        self._started = time.monotonic()
        self._first_step: int | None = None
        self._last_line = 0.0

    def log(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Append the metrics of a step and print a line every two seconds, at validations and at the end.

        A step with neither metrics nor a printed line leaves no trace.
        """
        now = time.monotonic()
        said = step >= self.total or now - self._last_line >= 2.0 or any(n.startswith("valid/") for n in metrics or {})
        if self.silent or not (said or metrics):
            return
        record = {"time": time.time(), "step": step, "total": self.total, "metrics": dict(metrics or {})}
        append_line(self.path, record)
        if self._first_step is None:
            self._first_step, self._started = step, now
        if said:
            self._last_line = now
            done = step - self._first_step
            left = (now - self._started) / done * (self.total - step) if done and step < self.total else None
            print(progress_line(step, self.total, self.unit, left, record["metrics"]), flush=True)


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append a JSON object as a line of its own, even after half a line.

    A full disk or a power cut leaves half a line at the end, or zeros. That line is ended rather than removed: the file
    only ever grows, so a reader's offset stays valid. The line end and the object go in one write.
    """
    line = json.dumps(value).encode() + b"\n"
    with path.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)


def read_lines(path: Path, offset: int = 0) -> tuple[list[Line], int]:
    """Read the whole lines after an offset. Skip damaged lines and warn once per file.

    Args:
        path: A metrics.jsonl or system_metrics.jsonl, which may be growing.
        offset: End of a line, in bytes.

    Returns:
        The lines, and the offset after the last whole one.
    """
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read()
    whole = data[: data.rfind(b"\n") + 1]
    lines: list[Line] = []
    damaged: list[bytes] = []
    for text in whole.split(b"\n")[:-1]:
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError:
            damaged.append(text)
    if damaged and path not in _WARNED:
        _WARNED.add(path)
        LOGGER.warning(
            "%s: skipped %d line(s) that are no records (a full disk or a power cut leaves such); the first begins %r",
            path,
            len(damaged),
            damaged[0][:40],
        )
    return lines, offset + len(whole)


def read_metrics(path: Path) -> Iterator[tuple[int, str, float]]:
    """Yield (step, name, value) of a metrics.jsonl by step, with the last value of each (name, step)."""
    latest = {(line.step, name): value for line in read_lines(path)[0] for name, value in line.metrics.items()}
    for (step, name), value in sorted(latest.items()):
        yield step, name, value
