"""A run's log file: all that it logs and prints, without secrets and control characters."""

import contextlib
import re
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from minillm.durable import make_folder

FOLDER = "logs"
"""In the store: a file for each flow run, by its name."""
KEPT_LINES = 2000
"""Lines said before the file is known; more are not kept."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, colour it, or turn the direction of text; lone surrogates too."""


def plain(text: str) -> str:
    """A text that a terminal shows as it is: control characters are replaced, tabs are blanks."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).replace("\t", "    ")


def log_path(store: Path, run: str) -> Path:
    """File of a flow run; a retry of it goes on in the same."""
    name = re.sub(r"[^\w.-]+", "-", run).strip("-.") or "run"
    return store / FOLDER / f"{name[:100]}.log"


class LogFile:
    """Takes lines from the start, and writes them once it is known where to.

    A disk that is full or gone ends the file, which is said once, and never the run.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._waiting: list[str] = []
        self._stream: TextIO | None = None
        self._lock = threading.RLock()  # which a signal handler of the thread that holds it may take, too

    def open(self, path: Path) -> None:
        """Begin to write, with what was said before."""
        with self._lock:
            self.path = path
            try:
                make_folder(path.parent)
                self._stream = path.open("a", encoding="utf-8", errors="replace")
            except OSError as error:
                self._lose(error)
            waiting, self._waiting = self._waiting, []
            for line in waiting:
                self._write(line)

    def add(self, line: str) -> None:
        """Write one line, with the date; it is on its way to the disk at once."""
        dated = f"{time.strftime('%Y-%m-%d')} {line}\n"
        with self._lock:
            if self.path is not None:
                self._write(dated)
            elif len(self._waiting) < KEPT_LINES:
                self._waiting.append(dated)

    def close(self) -> None:
        """End the file."""
        with self._lock:
            stream, self._stream = self._stream, None
            if stream is not None:
                with contextlib.suppress(OSError):  # of a disk that has become full
                    stream.close()

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError as error:
            self.close()
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        assert sys.__stderr__ is not None
        print(f"no log file any more: {self.path}: {error.strerror or error}", file=sys.__stderr__)
