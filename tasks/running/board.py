"""State of each stage of a run, as the console shows it."""

import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tasks.running.reached import MetricsFollower, Reached

State = Literal[
    "waiting", "running", "saving", "retrying", "cached", "done", "skipped", "failed", "stopped", "not computed"
]


@dataclass
class BoardRow:
    """One stage of one run."""

    label: str
    run: str = ""
    """Name of the study's run that the stage belongs to."""
    state: State = "waiting"
    note: str = ""
    """Reason why the stage failed or has nothing to do."""
    attempt: int = 0
    began: float = 0.0
    """Start of the attempt, in seconds of the monotonic clock."""
    seconds: float = 0.0
    """Seconds that the stage took, once it has ended."""
    reached: Reached | None = None
    follower: MetricsFollower | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Label of the stage, with the run's name before it if there are several runs."""
        return f"{self.run}: {self.label}" if self.run else self.label

    @property
    def elapsed(self) -> float:
        """Seconds of computing, so far or in total."""
        return time.monotonic() - self.began if self.state in ("running", "saving") else self.seconds


class Board:
    """Stages in the order in which they were submitted. Any thread writes to it; one reads it."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], BoardRow] = {}
        self._lock = threading.Lock()
        self.name = ""
        """Name of the configuration."""
        self.run = ""
        """Name of the flow run."""
        self.stopping = False

    def submit(self, label: str, run: str = "") -> None:
        """Add a stage that waits for its turn."""
        with self._lock:
            self._rows.setdefault((run, label), BoardRow(label, run))

    def begin(self, label: str, run: str, metrics: Path) -> None:
        """Note that a stage's worker starts, and which file has its metrics."""
        with self._lock:
            row = self._rows[run, label]
            row.state, row.note, row.reached = "running", "", None
            row.attempt += 1
            row.began = time.monotonic()
            row.follower = MetricsFollower(metrics)

    def end(self, label: str, run: str, state: State, note: str = "") -> None:
        """Note how a stage has ended, at least for now."""
        with self._lock:
            row = self._rows[run, label]
            row.seconds = row.elapsed
            row.state, row.note = state, note

    def never_began(self, label: str, run: str) -> None:
        """Note that a stage cannot be computed, since one of its inputs was not."""
        with self._lock:
            row = self._rows[run, label]
            if row.state == "waiting":
                row.state = "not computed"

    def stop(self) -> None:
        """Note that everything is to end. Safe in a signal handler."""
        self.stopping = True

    def look(self) -> list[BoardRow]:
        """Return copies of all rows, with the present progress of the running ones. For one thread only."""
        with self._lock:
            rows = list(self._rows.values())
        return [self._looked_at(row) for row in rows]

    def _looked_at(self, row: BoardRow) -> BoardRow:
        if row.state == "running":
            if row.follower is not None:
                row.reached = row.follower.read() or row.reached
            return replace(row, state="saving" if self.stopping else "running")
        return replace(row)
