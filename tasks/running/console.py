"""What a person sees of a run: on a terminal a live table and the last messages, elsewhere the lines as they come.

Everything said goes into the run's log file as well. One console serves a process: that of `shown`, or, for a flow run
that nobody started from a command line, that of the first session.
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
from tasks.running.board import Board, BoardRow
from tasks.running.log_file import LogFile, log_path, plain
from tasks.running.screen import Screen
from tasks.running.view import Snapshot, final_lines, live_lines

EVERY_SECONDS = 0.25
"""Between two looks at the stages, on a terminal."""
MESSAGES = 100
"""Last lines kept for the terminal; the log file has all."""
_LOCK = threading.Lock()
_OPEN: "Console | None" = None


class Console:
    """Takes over what a process logs and prints until it is closed."""

    def __init__(self, title: str, live: bool) -> None:
        """Prepare.

        Args:
            title: What is being done, until the run has a name.
            live: Whether stderr is a terminal that can be written to again and again.
        """
        self.title, self.live = title, live
        self.board = Board()
        self.log = LogFile()
        self.messages: deque[tuple[int, str]] = deque(maxlen=MESSAGES)
        self.started = time.monotonic()
        self._said: deque[str] = deque(maxlen=MESSAGES)
        self._errors: deque[str] = deque(maxlen=MESSAGES)
        """Said by loggers, but for those of tasks, whose rows tell the same."""
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
        live, self.live = self.live, False  # whoever has kept one of the streams writes through it from here on
        if (sys.stdout, sys.stderr) == self._tees:
            sys.stdout, sys.stderr = self._out, self._err
        if live:
            self._tell_the_end()
        self.log.close()

    def message(self, level: int, text: str, error: bool = False) -> None:
        """Take what is said, a line at a time.

        Args:
            level: Of logging.
            text: Without secrets.
            error: Whether it is to be shown again at the end, if nothing else tells what went wrong.
        """
        for line in map(plain, text.splitlines()):
            self.messages.append((level, line))
            self.log.add(line)
            self._errors += [line] if error else []

    def _shown_as_line(self, record: logging.LogRecord) -> bool:
        return not self.live

    def _word(self, line: str) -> None:
        """Take a line printed to stderr; at the end it is shown again, as nothing else may tell it."""
        self._said.append(line)
        self.message(logging.WARNING, f"{time.strftime('%H:%M:%S')}  {line}")

    def _result(self, line: str) -> None:
        """Take a line printed to stdout: it is the run's result, shown below the table."""
        self._results.append(line)
        self.log.add(f"{time.strftime('%H:%M:%S')}  {line}")

    def _paint(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            with contextlib.suppress(OSError):  # of a terminal that is gone
                self._screen.paint(lambda width, height: live_lines(self._seen(self.board.look()), width, height))

    def _seen(self, rows: list[BoardRow]) -> Snapshot:
        title = "  ".join(filter(None, (self.board.name or self.title, self.board.run)))
        seconds, log = time.monotonic() - self.started, str(self.log.path or "")
        return Snapshot(title, rows, list(self.messages), seconds, log, self.board.stopping)

    def _tell_the_end(self) -> None:
        """Leave the stages on the terminal, and below them what was printed."""
        self._screen.leave(lambda width: final_lines(self._seen(list(self.board)), width))
        explained = self.board.stopping or any(row.state == "failed" for row in self.board)
        for line in (*self._said, *(() if explained else self._errors)):
            print(line, file=self._err)
        for line in self._results:
            print(line, file=self._out)
        self._out.flush()


class _Keeper(logging.Handler):
    """Hands what a console handler shows to the console, in the same words."""

    def __init__(self, console: Console, beside: PrefectConsoleHandler) -> None:
        super().__init__(beside.level)
        self._console, self._beside = console, beside

    def emit(self, record: logging.LogRecord) -> None:
        try:
            words = redacted(self._beside.format(record))
            error = record.levelno >= logging.ERROR and record.name != "prefect.task_runs"
            self._console.message(record.levelno, words, error)
        except Exception:  # what cannot be written down ends nothing
            self.handleError(record)


class _Tee:
    """A stream whose whole lines the console gets; without a terminal they go on to where they went."""

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
                self._take(plain(redacted(line.rstrip("\r").rpartition("\r")[2])))  # of a bar, the last state
        return len(text)

    def finish(self) -> None:
        """Hand on what has no end of its line yet, and from here on nothing."""
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
def shown(title: str) -> Iterator[Console]:
    """Open the console of a command line, around all that it does.

    Args:
        title: What is being done.
    """
    with _opened(title, _is_terminal(sys.stderr)) as console:
        yield console


@contextlib.contextmanager
def followed(name: str, run: str, store: Path) -> Iterator[Console]:
    """Show a run on the console that is open, or on one without a table, and keep its log file.

    Args:
        name: Of its configuration.
        run: Of the flow run.
        store: Folder that the log file is kept in.
    """
    with _opened(name, live=False) as console:
        if console.log.path is None:
            console.board.name, console.board.run = name, run
            console.log.open(log_path(store, run))
        yield console


@contextlib.contextmanager
def _opened(title: str, live: bool) -> Iterator[Console]:
    global _OPEN
    with _LOCK:
        found = _OPEN
        console = _OPEN = found or Console(title, live)
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
    """Whether a stream is a terminal whose lines can be written again."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def _loggers() -> list[logging.Logger]:
    named = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    return [logging.root, *named]
