"""Answers on a terminal, side by side while they are drawn, and as plain text elsewhere."""

import contextlib
import json
import re
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from minillm.chat.partner import Answer

NARROW = 80
"""Columns of a terminal below which answers stand one above the other."""
GAP = 3
"""Blanks between two columns."""
REFRESH = 0.1
"""Seconds between two pictures."""
HIDDEN = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
    re.DOTALL,
)
"""Control sequences and characters that move or colour what a terminal shows, or turn its direction."""

Show = Callable[[Sequence[Answer]], None]


def visible(text: str) -> str:
    """Return a text without what would control a terminal; line ends and tabs stay."""
    return HIDDEN.sub("", text)


@contextlib.contextmanager
def _unechoed() -> Iterator[None]:
    """Keep keys that are pressed meanwhile, Ctrl-C among them, from being written into the picture."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    flags = before[3] & ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, [*before[:3], flags, *before[4:]])
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Display:
    """Writer of answers: live columns on a terminal, plain text elsewhere."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.on_terminal = sys.stdout.isatty()
        self._console = Console(force_terminal=self.on_terminal, markup=False, highlight=False, emoji=False)

    @contextlib.contextmanager
    def live(self) -> Iterator[Show]:
        """Show answers while they are drawn, if this is a terminal; nothing of it stays."""
        if not self._console.is_interactive:
            yield lambda answers: None
            return
        shown = 0.0
        with _unechoed(), Live(console=self._console, auto_refresh=False, transient=True) as picture:

            def show(answers: Sequence[Answer]) -> None:
                nonlocal shown
                if time.monotonic() - shown >= REFRESH:
                    picture.update(self._picture(answers, self._console.height - 1), refresh=True)
                    shown = time.monotonic()

            yield show

    def leave(self, answers: Sequence[Answer]) -> None:
        """Write answers that are whole: as columns on a terminal, elsewhere one after the other and unchanged."""
        if self.on_terminal:
            self._console.print(self._picture(answers, None))
            return
        for label, answer in zip(self.labels, answers, strict=True):
            print(f"{label}: {answer.text}" if len(self.labels) > 1 else answer.text, flush=True)
            self.tell(f"{label}: {answer.words}")

    def leave_json(self, answers: Sequence[Answer]) -> None:
        """Write answers as a line of JSON."""
        facts = {
            label: {"answer": answer.text, "tokens": answer.tokens, "seconds": answer.seconds, "note": answer.note}
            for label, answer in zip(self.labels, answers, strict=True)
        }
        print(json.dumps(facts), flush=True)

    def tell(self, words: str) -> None:
        """Write what is no answer; to stderr, if answers go to a file or another program."""
        if self.on_terminal:
            self._console.print(Text(visible(words)))
        else:
            print(words, file=sys.stderr, flush=True)

    def _picture(self, answers: Sequence[Answer], height: int | None) -> RenderableType:
        """Return answers below their labels; of what is too high, the end.

        Args:
            answers: One of each model.
            height: Lines that there are; None for all.
        """
        beside = len(answers) > 1 and self._console.width >= NARROW
        columns = len(answers) if beside else 1
        width = (self._console.width - GAP * (columns - 1)) // columns
        lines = None if height is None else height * columns // len(answers)
        parts = [self._part(*pair, width, lines) for pair in zip(self.labels, answers, strict=True)]
        if not beside:
            return Group(*parts)
        table = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        for _ in answers:
            table.add_column(width=width)
        table.add_row(*parts)
        return table

    def _part(self, label: str, answer: Answer, width: int, lines: int | None) -> Text:
        heading = Text(f"{label}  ", "bold").append(answer.words, "dim").wrap(self._console, width)
        text = Text(visible(answer.text)).wrap(self._console, width)
        if lines is not None:
            text = text[-max(1, lines - len(heading) - 1) :]
        return Text("\n").join([*heading, *text, Text()])
