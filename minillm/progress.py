"""What a worker tells the outside: lines in its log and an append-only metrics.jsonl."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from minillm.artifacts import METRICS


class Progress:
    """Writes progress and metrics of one stage; does nothing on processes other than rank 0.

    A line is {"time", "step", "total", "metrics": {name: value}}. A resumed stage repeats the steps since its last
    checkpoint; readers keep the last value of a (name, step).
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
        """Append metrics of a step, and every two seconds, at metrics worth a line and at the end, say so.

        A step without metrics that is not said leaves no trace.
        """
        now = time.monotonic()
        said = step >= self.total or now - self._last_line >= 2.0 or any(n.startswith("valid/") for n in metrics or {})
        if self.silent or not (said or metrics):
            return
        record = {"time": time.time(), "step": step, "total": self.total, "metrics": dict(metrics or {})}
        with self.path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        if self._first_step is None:
            self._first_step, self._started = step, now
        if said:
            self._last_line = now
            print(self._line(step, record["metrics"], now - self._started), flush=True)

    def _line(self, step: int, metrics: Mapping[str, float], elapsed: float) -> str:
        filled = round(20 * step / max(self.total, 1))
        done = step - (self._first_step or 0)
        left = f", {elapsed / done * (self.total - step):.0f} s left" if done and step < self.total else ""
        values = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        return f"[{'█' * filled}{'·' * (20 - filled)}] {step}/{self.total} {self.unit}{left}  {values}"


def read_metrics(path: Path) -> Iterator[tuple[int, str, float]]:
    """(step, name, value) of a metrics.jsonl, the last value of each (name, step), in the order of steps."""
    latest: dict[tuple[int, str], float] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for name, value in record["metrics"].items():
            latest[record["step"], name] = value
    for (step, name), value in sorted(latest.items()):
        yield step, name, value
