"""A terminal for tests: a real pseudo-terminal with a process at its other end, and what would be seen on it."""

import codecs
import contextlib
import fcntl
import itertools
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PART = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|\x1b\[\?\d+[hl]|(\r)|(\n)|(\x07)|([^\x1b\r\n\x07]+)")
BEGUN = re.compile(r"\x1b(\[[0-9;?]*)?$")
"""A movement of which only the beginning has been read."""


class Picture:
    """The lines of a terminal that wraps and scrolls, and knows what the table uses; all else is an error."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.rows = [""]
        """From the first ever written."""
        self.row = self.column = self.top = 0
        """The cursor, and the first row on the screen: what has scrolled off does not come back."""

    @property
    def screen(self) -> list[str]:
        """What is seen."""
        return [row.rstrip() for row in self.rows[self.top : self.top + self.lines]]

    def feed(self, text: str) -> None:
        """Show what a process writes."""
        place = 0
        while place < len(text):
            found = PART.match(text, place)
            assert found is not None, f"no part of a table: {text[place : place + 20]!r}"
            place = found.end()
            number, letter, begin, down, bell, words = found.groups()
            assert bell is None, "a bell"
            if letter:
                self._move(letter, number)
            elif begin:
                self.column = 0
            elif down:
                self._down()
            elif words:
                self._write(words)

    def resize(self, columns: int, lines: int) -> None:
        """Wrap what is too long, as terminals do whose window is made narrower."""
        before = [row.rstrip() for row in self.rows[: self.row]]
        wrapped = [[row[at : at + columns] for at in range(0, max(len(row), 1), columns)] for row in before]
        gone = sum(map(len, wrapped[: self.top]))
        self.rows = [*itertools.chain(*wrapped), ""]
        self.columns, self.lines, self.row, self.column = columns, lines, len(self.rows) - 1, 0
        self.top = max(gone, len(self.rows) - lines)

    def _move(self, letter: str, number: str) -> None:
        if letter == "A":
            self.row = max(self.row - int(number or 1), self.top)
        elif letter == "K":
            self.rows[self.row] = self.rows[self.row][: self.column]
        elif letter == "J":
            self.rows[self.row] = self.rows[self.row][: self.column]
            del self.rows[self.row + 1 :]
        else:
            assert letter == "m", f"no movement of a table: {letter}"

    def _down(self) -> None:
        self.row += 1
        self.top = max(self.top, self.row - self.lines + 1)
        if self.row == len(self.rows):
            self.rows.append("")

    def _write(self, words: str) -> None:
        for character in words:
            if self.column == self.columns:
                self._down()
                self.column = 0
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
            self.column += 1


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(
        self, command: Sequence[str], columns: int, lines: int, cwd: Path, environment: dict[str, str]
    ) -> None:
        self._ours, theirs = pty.openpty()
        self.picture = Picture(columns, lines)
        self.pictures: list[list[str]] = []
        """Each that was seen, once."""
        self.written = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._begun = ""
        self._set_size(columns, lines)
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=environment | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def until(self, seen: Callable[[list[str]], object], seconds: float = 300) -> list[str]:
        """Wait for a picture, and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self._read():
                break
            if seen(self.picture.screen):
                return self.picture.screen
        raise AssertionError("\n".join(["never seen; last:", *self.picture.screen]))

    def wait(self, seconds: float = 300) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, "\n".join(self.picture.screen)
        return self.process.wait(10)

    def type(self, keys: str) -> None:
        """Press keys, say Ctrl-C."""
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the window between two pictures: what was drawn for the former one is read first."""
        self.process.send_signal(signal.SIGSTOP)
        while select.select([self._ours], [], [], 0.1)[0]:
            self._read()
        self._set_size(columns, lines)
        self.picture.resize(columns, lines)
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process if it is still there."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def _read(self) -> bool:
        """Show what has been written; False at the end."""
        if not select.select([self._ours], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # nobody is at the other end any more
            return False
        text = self._begun + self._decoder.decode(data)
        begun = BEGUN.search(text)
        self._begun = begun[0] if begun else ""
        text = text.removesuffix(self._begun)
        self.written += text
        for part in re.split(r"(?<=\x1b\[J)", text):
            self.picture.feed(part)
            if part and self.picture.screen not in self.pictures[-1:]:
                self.pictures.append(self.picture.screen)
        return bool(data)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextlib.contextmanager
def terminal(
    command: Sequence[str], columns: int, lines: int, cwd: Path, environment: dict[str, str]
) -> Iterator[Terminal]:
    """Run a command on a terminal of a size."""
    there = Terminal(command, columns, lines, cwd, environment)
    try:
        yield there
    finally:
        there.close()
