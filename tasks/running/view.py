"""Table of a run's stages as lines of text, for any width and height, without any knowledge of terminals."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from rich.cells import cell_len
from rich.text import Text

from minillm.training.collapse import COLLAPSED
from minillm.worker.template import GRACE_SECONDS
from tasks.running.board import BoardRow, State
from tasks.running.log_file import plain

STYLES: dict[State, str] = {
    "waiting": "dim",
    "running": "cyan",
    "saving": "yellow",
    "retrying": "yellow",
    "cached": "blue",
    "done": "green",
    "skipped": "dim",
    "failed": "bold red",
    "stopped": "yellow",
    "not computed": "red",
}
COUNTED_FIRST: tuple[State, ...] = (
    "skipped", "cached", "not computed", "waiting", "done", "stopped", "retrying", "running", "saving", "failed",
)  # fmt: skip
"""States whose stages a low terminal only counts, the first ones first."""
NAMED_AT_THE_END: tuple[State, ...] = ("cached", "skipped", "not computed", "waiting")
"""States of stages of which only the names are shown when a run has ended."""
LEAST_NAME = 16
"""Fewest columns for the names of stages; a wide terminal gives them up to a third of its width."""
LAST_MESSAGES = 8
BAR_LINE = re.compile(r": \[[█·]{20}\] ")
"""Pattern of a worker's line that says what its row already shows."""


@dataclass(frozen=True)
class Snapshot:
    """State of a run at one moment."""

    title: str
    rows: Sequence[BoardRow]
    messages: Sequence[tuple[int, str]]
    """Levels and words, the last message last."""
    seconds: float
    """Seconds since the run began."""
    log: str = ""
    """Path of the log file."""
    stopping: bool = False


def live_lines(seen: Snapshot, width: int, height: int) -> list[Text]:
    """Return at most `height` lines: the head, the stages, and the last messages."""
    head = _head(seen)
    room = max(height - len(head), 0)
    messages = [message for message in seen.messages if not BAR_LINE.search(message[1])][-LAST_MESSAGES:]
    # Stages come first, except for a few lines of the last messages.
    for_messages = min(len(messages) + 1, max(room - len(seen.rows), room // 4)) if messages else 0
    lines = [*head, *_table(seen.rows, width, room - for_messages)]
    if for_messages > 1:
        lines.append(Text("─" * width, "dim"))
        lines += [Text(words, _level_style(level)) for level, words in messages[1 - for_messages :]]
    return [_cropped(line, width) for line in lines[:height]]


def final_lines(seen: Snapshot, width: int) -> list[Text]:
    """Return the lines that stay on the terminal: the stages that were computed or could not be, and why."""
    told = [row for row in seen.rows if row.state not in NAMED_AT_THE_END]
    lines = [*_head(seen), *_table(told, width, len(told))]
    for state in NAMED_AT_THE_END:
        names = [plain(row.name) for row in seen.rows if row.state == state]
        if names:
            lines.append(Text.assemble((f"{len(names)} {state}", STYLES[state]), f"  {', '.join(names)}"))
    lines = [_cropped(line, width) for line in lines]
    for row in seen.rows:
        if row.state == "failed" and row.note:
            words = "\n".join(map(plain, row.note.splitlines()))
            lines.append(Text.assemble((f"{plain(row.name)} failed: ", "bold red"), words))
    if seen.stopping:
        lines.append(
            Text("Stopped. Finished stages are in the store, and the same command goes on from there.", "yellow")
        )
    return lines


def _head(seen: Snapshot) -> list[Text]:
    ended = sum(row.state in ("cached", "done", "skipped") for row in seen.rows)
    count = f"{ended} of {len(seen.rows)} stages" if seen.rows else ""
    words = [plain(seen.title), count, _clock(seen.seconds)]
    head = [Text("  ".join(filter(None, words)), "bold")]
    if seen.log:
        head.append(Text(f"log {plain(seen.log)}", "dim"))
    saving = [row for row in seen.rows if row.state == "saving"]
    if seen.stopping and saving:
        names = ", ".join(plain(row.name) for row in saving)
        head.append(Text(f"stopping, and saving what there is of {names}, for {GRACE_SECONDS:.0f} s at most", "yellow"))
    return head


def _table(rows: Sequence[BoardRow], width: int, height: int) -> list[Text]:
    """Return a line for each stage. Without room for all, the last line counts the less interesting ones."""
    shown, counts = _chosen(rows, height)
    longest = max((cell_len(plain(row.name)) for row in shown), default=0)
    name_width = min(longest, max(LEAST_NAME, width // 3))
    lines = [_row_line(row, name_width, width) for row in shown]
    if counts:
        parts = [(f"{count} {state}", STYLES[state]) for state, count in counts.items()]
        lines.append(Text("  and ").append_text(Text("  ").join(Text(*part) for part in parts)))
    return lines[: max(height, 0)]


def _chosen(rows: Sequence[BoardRow], height: int) -> tuple[list[BoardRow], Mapping[State, int]]:
    """Return the rows to show, and the number of the others by state."""
    too_many = len(rows) - height
    if too_many <= 0:
        return list(rows), {}
    counts: dict[State, int] = {}
    hidden: set[int] = set()
    for state in COUNTED_FIRST:
        places = [place for place, row in enumerate(rows) if row.state == state]
        # Of the waiting stages the next ones stay, of all others the last ones.
        left_out = places[::-1] if state == "waiting" else places
        left_out = left_out[: max(too_many + 1 - len(hidden), 0)]
        hidden.update(left_out)
        if left_out:
            counts[state] = len(left_out)
    return [row for place, row in enumerate(rows) if place not in hidden], counts


def _row_line(row: BoardRow, name_width: int, width: int) -> Text:
    style = STYLES[row.state]
    line = Text(plain(row.name), "" if row.began else "dim")
    line.truncate(name_width, overflow="ellipsis", pad=True)
    line.append("  ").stylize(style if row.state in ("running", "saving", "failed") else "")
    again = f"attempt {row.attempt}" if row.attempt > 1 else ""
    if row.state in ("running", "saving"):
        line.append_text(_progress(row, width))
        return line.append(f"  {again}" if again else "", "yellow")
    took = _clock(row.seconds) if row.seconds else ""
    got = f"{row.reached.step}/{row.reached.total}" if row.state == "stopped" and row.reached is not None else ""
    note = plain(row.note.partition("\n")[0]) if row.state != "stopped" else ""
    return line.append(row.state, style).append("".join(f"  {part}" for part in (got, took, again, note) if part))


def _progress(row: BoardRow, width: int) -> Text:
    """Return a bar, with as many of count, pace, time left, a warning and last figures as there is room for."""
    reached = row.reached
    word = "saving" if row.state == "saving" else "running"
    if reached is None or not reached.total:
        return Text(f"{word}  {_clock(row.elapsed)}", STYLES[row.state])
    bar_width = 16 if width >= 100 else 8 if width >= 50 else 6
    filled = round(bar_width * reached.share)
    bar = Text.assemble(("━" * filled, STYLES[row.state]), ("━" * (bar_width - filled), "dim"))
    left, pace = reached.seconds_left, reached.per_second
    parts = [f"{reached.step}/{reached.total}" if width >= 64 else f"{100 * reached.share:.0f} %"]
    if pace and width >= 72:
        parts.append(f"{pace:.3g}/s" if pace >= 1 else f"{1 / pace:.3g} s each")
    if word == "saving":
        parts.append(word)
    elif left is not None:
        parts.append(f"{_clock(left)} left" if width >= 50 else _clock(left))
    bar.append("  " + "  ".join(parts))
    figures = dict(reached.figures)
    if collapsed := figures.pop(COLLAPSED, None):
        bar.append(f"  collapsed in round {collapsed:.0f}", "red")
    if width >= 72:  # those that do not fit are cut off
        bar.append("".join(f"  {plain(name)} {value:.4g}" for name, value in figures.items()))
    return bar


def _cropped(line: Text, width: int) -> Text:
    line.truncate(max(width, 1), overflow="ellipsis")
    return line


def _level_style(level: int) -> str:
    return "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else ""


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
