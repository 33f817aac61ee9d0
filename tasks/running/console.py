"""Console of a run: a live table and the last messages on a terminal, plain lines elsewhere.

Everything said also goes into the run's log file. A process has one console: that of `shown`, or that of the first
session if the flow run was not started from a command line.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TextIO, cast

from prefect.logging.handlers import PrefectConsoleHandler

from minillm.redaction import redacted
from tasks.running.board import Board
from tasks.running.log_file import LogFile, log_path, plain
from tasks.running.screen import Screen
from tasks.running.view import Snapshot, final_lines, live_lines

EVERY_SECONDS = 0.25
"""Seconds between two looks at the stages, on a terminal."""
MESSAGES = 100
"""Most lines kept for the terminal; the log file has all."""
_LOCK = threading.Lock()
_OPEN: "Console | None" = None


class Console:
    """Console that takes everything that its process logs and prints, until it is closed."""

    def __init__(self, title: str, live: bool) -> None:
        """Prepare.

        Args:
            title: Heading until the run has a name.
            live: Whether to paint a table on stderr, which must be a terminal.
        """
        self.title, self.live = title, live
        self.board = Board()
        self.log = LogFile()
        self.messages: deque[tuple[int, str]] = deque(maxlen=MESSAGES)
        self.started = time.monotonic()
        self._said: deque[str] = deque(maxlen=MESSAGES)
        self._errors: deque[str] = deque(maxlen=MESSAGES)
        """Errors from loggers, except those of tasks, whose rows say the same."""
        self._results: list[str] = []
        self._handlers: list[tuple[logging.Logger, PrefectConsoleHandler, logging.Handler]] = []
        self._ended = threading.Event()
        self._painter = threading.Thread(target=self._paint, name="console", daemon=True)

    def __enter__(self) -> Self:
        self._out, self._err = sys.stdout, sys.stderr
        self._tees = (_Tee(self._out, self._result, self), _Tee(self._err, self._word, self))
        for logger in _loggers():
            for handler in [h for h in logger.handlers if isinstance(h, PrefectConsoleHandler)]:
                keeper = _Keeper(self, handler)
                logger.addHandler(keeper)
                handler.addFilter(self._shown_as_line)
                self._handlers.append((logger, handler, keeper))
        sys.stdout, sys.stderr = cast(tuple[TextIO, TextIO], self._tees)
        if self.live:
            self._screen = Screen(self._err)
            self._painter.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for tee in self._tees:
            tee.finish()
        if self.live:
            self._painter.join()
        for logger, handler, keeper in self._handlers:
            handler.removeFilter(self._shown_as_line)
            logger.removeHandler(keeper)
        live, self.live = self.live, False  # a stream that somebody has kept passes everything on from here
        if (sys.stdout, sys.stderr) == self._tees:
            sys.stdout, sys.stderr = self._out, self._err
        if live:
            self._tell_the_end()
        self.log.close()

    def message(self, level: int, text: str, error: bool = False) -> None:
        """Take a message, line by line.

        Args:
            level: Logging level.
            text: Message without secrets.
            error: Whether to show it again at the end, if nothing else says what went wrong.
        """
        for line in map(plain, text.splitlines()):
            self.messages.append((level, line))
            self.log.add(line)
            self._errors += [line] if error else []

    def _shown_as_line(self, record: logging.LogRecord) -> bool:
        return not self.live

    def _word(self, line: str) -> None:
        """Take a line printed to stderr. It is shown again at the end, since nothing else may say the same."""
        self._said.append(line)
        self.message(logging.WARNING, f"{time.strftime('%H:%M:%S')}  {line}")

    def _result(self, line: str) -> None:
        """Take a line printed to stdout. It belongs to the run's result, which is shown below the table."""
        self._results.append(line)
        self.log.add(f"{time.strftime('%H:%M:%S')}  {line}")

    def _paint(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            with contextlib.suppress(OSError):  # the terminal is gone
                self._screen.paint(lambda width, height: live_lines(self._seen(), width, height))

    def _seen(self) -> Snapshot:
        title = "  ".join(filter(None, (self.board.name or self.title, self.board.run)))
        seconds, log = time.monotonic() - self.started, str(self.log.path or "")
        return Snapshot(title, self.board.look(), list(self.messages), seconds, log, self.board.stopping)

    def _tell_the_end(self) -> None:
        """Leave the stages on the terminal, and below them the printed lines."""
        seen = self._seen()
        self._screen.leave(lambda width: final_lines(seen, width))
        explained = seen.stopping or any(row.state == "failed" for row in seen.rows)
        for line in (*self._said, *(() if explained else self._errors)):
            print(line, file=self._err)
        for line in self._results:
            print(line, file=self._out)
        self._out.flush()


class _Keeper(logging.Handler):
    """Handler that gives the console what a Prefect handler shows, in the same words."""

    def __init__(self, console: Console, beside: PrefectConsoleHandler) -> None:
        super().__init__(beside.level)
        self._console, self._beside = console, beside

    def emit(self, record: logging.LogRecord) -> None:
        try:
            words = redacted(self._beside.format(record))
            error = record.levelno >= logging.ERROR and record.name != "prefect.task_runs"
            self._console.message(record.levelno, words, error)
        except Exception:  # a record that cannot be formatted ends nothing
            self.handleError(record)


class _Tee:
    """Stream whose whole lines the console gets. Without a live table, they also go to the original stream."""

    def __init__(self, stream: TextIO, take: Any, console: Console) -> None:
        self._stream, self._take, self._console = stream, take, console
        self._part = ""
        self._open = True
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        if not self._console.live:
            self._stream.write(text)
        with self._lock:
            *lines, self._part = (self._part + text).split("\n") if self._open else [""]
            for line in lines:
                self._take(plain(redacted(line.rstrip("\r").rpartition("\r")[2])))  # the last state of a bar
        return len(text)

    def finish(self) -> None:
        """Hand on the last line, though it has no end yet, and nothing from here on."""
        with self._lock:
            if self._part:
                self._take(plain(redacted(self._part)))
            self._open, self._part = False, ""

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def followed(name: str, run: str, store: Path) -> Iterator[Console]:
    """Show a run on the open console, or on one without a table, and keep its log file.

    Args:
        name: Name of the configuration.
        run: Name of the flow run.
        store: Store of the log file.
    """
    with shown(name, live=False) as console:
        if console.log.path is None:
            console.board.name, console.board.run = name, run
            console.log.open(log_path(store, run))
        yield console


@contextlib.contextmanager
def shown(title: str, live: bool | None = None) -> Iterator[Console]:
    """Open the process's console around a command, unless it is open already.

    Args:
        title: Heading until the run has a name.
        live: Whether to paint a table on stderr; by default, if that is a terminal.
    """
    global _OPEN
    with _LOCK:
        found = _OPEN
        console = _OPEN = found or Console(title, _is_terminal(sys.stderr) if live is None else live)
    if found is not None:
        yield found
        return
    try:
        with console:
            yield console
    finally:
        with _LOCK:
            _OPEN = None


def _is_terminal(stream: TextIO) -> bool:
    """Return whether a stream is a terminal whose lines can be painted over."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _loggers() -> list[logging.Logger]:
    named = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    return [logging.root, *named]
