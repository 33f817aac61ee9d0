"""Lines on a terminal that are painted again and again, whatever its present size."""

import os
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

ASCII = str.maketrans("━─…", "=-~")
"""Replacements on a terminal whose encoding lacks these characters."""


class Screen:
    """Last lines of a terminal, which belong to one table."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, force_terminal=True, markup=False, emoji=False, highlight=False)
        self._widths: list[int] = []
        """Widths of the lines painted last."""

    def paint(self, lines_for: Callable[[int, int], Sequence[Text]]) -> None:
        """Paint over what was painted last.

        Args:
            lines_for: Function of a width and a height that makes lines within both.
        """
        columns, height = self._size()
        lines = lines_for(columns - 1, height - 1)
        # A terminal that was made narrower has wrapped the old lines.
        above = min(sum(max(1, -(-width // columns)) for width in self._widths), height - 1)
        self._widths = [line.cell_len for line in lines]
        # Written in one piece, so that nobody sees half of it. The rest of each line, and all below, is cleared.
        words = "".join(f"{self._styled(line)}\x1b[K\n" for line in lines)
        self._write(f"\r\x1b[{above}A{words}\x1b[J" if above else f"\r{words}\x1b[J")

    def leave(self, lines_for: Callable[[int], Sequence[Text]]) -> None:
        """Replace what was painted by lines that stay."""
        columns, _ = self._size()
        self.paint(lambda *_: [])
        self._write("".join(f"{self._styled(line)}\n" for line in lines_for(columns - 1)))

    def _size(self) -> tuple[int, int]:
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return size.columns or 80, size.lines or 24  # a pseudo-terminal may have none

    def _styled(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", soft_wrap=True)
        words, encoding = captured.get(), self._stream.encoding
        if encoding.lower().startswith("utf"):
            return words
        return words.translate(ASCII).encode(encoding, "replace").decode(encoding)

    def _write(self, words: str) -> None:
        self._stream.write(words)
        self._stream.flush()
