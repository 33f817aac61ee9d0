"""Log file of a run: everything that it logs and prints, without secrets and control characters."""

import contextlib
import re
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from minillm.durable import make_folder

FOLDER = "logs"
"""Folder of the store with a file for each flow run, by its name."""
KEPT_LINES = 2000
"""Most lines kept before the file is known."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, change colours or turn the direction of text, and lone surrogates."""


def plain(text: str) -> str:
    """Return a text that a terminal shows as it is, with control characters replaced and blanks for tabs."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).replace("\t", "    ")


def log_path(store: Path, run: str) -> Path:
    """Return the log file of a flow run. A retry of the run continues the same file."""
    name = re.sub(r"[^\w.-]+", "-", run).strip("-.") or "run"
    return store / FOLDER / f"{name[:100]}.log"


class LogFile:
    """Log file that takes lines from the start, and writes them once its path is known.

    A disk that is full or gone ends the file, with one message, and never the run.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._waiting: list[str] = []
        self._stream: TextIO | None = None
        self._lock = threading.RLock()  # a signal handler may take it in the thread that holds it

    def open(self, path: Path) -> None:
        """Begin to write, starting with the lines added so far."""
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
        """Write one line with the date, and flush it."""
        dated = f"{time.strftime('%Y-%m-%d')} {line}\n"
        with self._lock:
            if self.path is not None:
                self._write(dated)
            elif len(self._waiting) < KEPT_LINES:
                self._waiting.append(dated)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            stream, self._stream = self._stream, None
            if stream is not None:
                with contextlib.suppress(OSError):  # the disk has become full
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
        print(f"the log file ends here: {self.path}: {error.strerror or error}", file=sys.__stderr__)
