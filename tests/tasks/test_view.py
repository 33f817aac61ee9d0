"""The table of stages as lines of text."""

import logging
import time

import pytest
from rich.text import Text

from minillm.training.collapse import COLLAPSED
from tasks.running.board import BoardRow, State
from tasks.running.reached import Reached
from tasks.running.view import Snapshot, final_lines, live_lines

HALFWAY = Reached(step=120, total=400, figures={"train/loss": 3.21094, "valid/loss": 3.4}, per_second=2.5)


def words(lines: list[Text]) -> list[str]:
    return [line.plain.rstrip() for line in lines]


def snapshot(*rows: BoardRow, messages: int = 0, stopping: bool = False) -> Snapshot:
    said = [(logging.INFO, f"12:00:{number:02}  stage: message {number}") for number in range(messages)]
    return Snapshot("quickstart  amber-fox", rows, said, 3723.0, ".minillm/logs/amber-fox.log", stopping)


def row(label: str, state: State = "waiting", **facts: object) -> BoardRow:
    return BoardRow(label, state=state, **facts)  # type: ignore[arg-type]


def test_each_state_has_its_words():
    rows = [
        row("prepare tokenizer", "cached"),
        row("filter examples", "done", seconds=61.2, began=1.0),
        row("train minillm", "running", reached=HALFWAY, began=1.0, attempt=1),
        row("train sft", "running", began=time.monotonic() - 5, attempt=2),
        row("train kd", "failed", note="learning_rate 1e30 is too high\nlower it", seconds=3.0, attempt=2, began=1.0),
        row("teacher responses", "skipped", note="no method has `text: teacher`"),
        row("report"),
    ]
    assert words(live_lines(snapshot(*rows), 120, 40)) == [
        "quickstart  amber-fox  3 of 7 stages  1:02:03",
        "log .minillm/logs/amber-fox.log",
        "prepare tokenizer  cached",
        "filter examples    done  0:01:01",
        "train minillm      ━━━━━━━━━━━━━━━━  120/400  2.5/s  0:01:52 left  train/loss 3.211  valid/loss 3.4",
        "train sft          running  0:00:05  attempt 2",
        "train kd           failed  0:00:03  attempt 2  learning_rate 1e30 is too high",
        "teacher responses  skipped  no method has `text: teacher`",
        "report             waiting",
    ]


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (79, "train minillm  ━━━━━━━━  120/400  2.5/s  0:01:52 left  train/loss 3.211  valid…"),
        (70, "train minillm  ━━━━━━━━  120/400  0:01:52 left"),
        (39, "train minillm  ━━━━━━  30 %  0:01:52"),
    ],
)
def test_a_narrow_terminal_has_less_of_a_row(width: int, line: str):
    running = row("train minillm", "running", reached=HALFWAY, began=1.0, attempt=1)
    assert words(live_lines(snapshot(running), width, 20))[-1] == line


def test_a_training_that_has_collapsed_says_so_before_its_figures():
    figures = {"train/loss": 3.0, "train/student_entropy": 0.004, COLLAPSED: 7.0}
    fallen = row("train minillm", "running", reached=Reached(120, 400, figures, 2.5), began=1.0, attempt=1)
    assert words(live_lines(snapshot(fallen), 140, 20))[-1].endswith(
        "0:01:52 left  collapsed in round 7  train/loss 3  train/student_entropy 0.004"
    )
    ended = row("train minillm", "done", note="training collapsed from round 7 on", seconds=2.0)
    assert (
        words(final_lines(snapshot(ended), 80))[-1]
        == "train minillm  done  0:00:02  training collapsed from round 7 on"
    )


@pytest.mark.parametrize("width", [10, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 10, 24, 60])
def test_nothing_is_wider_or_higher_than_the_terminal(width: int, height: int):
    rows = [row(f"generate 模型 {number}", "waiting") for number in range(24)]
    rows[3] = row("a stage with a very long name indeed, longer than any", "running", reached=HALFWAY, began=1.0)
    lines = live_lines(snapshot(*rows, messages=20), width, height)
    assert len(lines) <= height
    assert max(line.cell_len for line in lines) <= width


def test_a_low_terminal_counts_what_is_less_interesting():
    rows = [row(f"cached {n}", "cached") for n in range(8)] + [row(f"done {n}", "done", seconds=1.0) for n in range(4)]
    rows += [row("train sft", "running", began=time.monotonic()), row("train kd", "failed", note="no memory")]
    rows += [row(f"waiting {n}") for n in range(10)]
    lines = words(live_lines(snapshot(*rows, messages=20), 80, 14))
    assert lines[2:] == [
        "done 0     done  0:00:01",
        "done 1     done  0:00:01",
        "done 2     done  0:00:01",
        "done 3     done  0:00:01",
        "train sft  running  0:00:00",
        "train kd   failed  no memory",
        "waiting 0  waiting",
        "waiting 1  waiting",
        "  and 8 cached  8 waiting",
        "─" * 80,
        "12:00:18  stage: message 18",
        "12:00:19  stage: message 19",
    ]


def test_a_workers_bar_is_no_message():
    seen = snapshot(row("train sft"))
    said = [(logging.INFO, "12:00:01  train sft: [██████████··········] 10/20 steps  loss 3"), (logging.INFO, "other")]
    assert words(live_lines(Snapshot(seen.title, seen.rows, said, 1.0), 80, 20))[-1] == "other"
    assert "10/20" not in "".join(words(live_lines(Snapshot(seen.title, seen.rows, said, 1.0), 80, 20)))


def test_markup_and_control_characters_are_shown_as_they_are():
    bad = row("train [red]x[/red]\x1b[2J\x1b]0;title\x07", "failed", note="\x1b[31mred\u202e\r\nnext\x9b2J")
    for lines in (live_lines(snapshot(bad), 80, 20), final_lines(snapshot(bad), 80)):
        text = "\n".join(words(lines))
        assert "train [red]x[/red]\ufffd[2J\ufffd" in text
        assert not any(ord(character) < 32 and character != "\n" for character in text)
        assert not {"\x9b", "\x7f", "\u202e"} & set(text)


def test_the_end_has_what_was_computed_and_why_something_was_not():
    rows = [row("a", "cached"), row("b", "cached"), row("c", "done", seconds=2.0), row("d", "skipped"), row("e")]
    rows += [row("f", "failed", note="this is wrong\nand this is to be done"), row("g", "not computed")]
    assert words(final_lines(snapshot(*rows), 80))[2:] == [
        "c  done  0:00:02",
        "f  failed  this is wrong",
        "2 cached  a, b",
        "1 skipped  d",
        "1 not computed  g",
        "1 waiting  e",
        "f failed: this is wrong\nand this is to be done",
    ]


def test_stopping_says_who_may_still_save_something():
    saving = row("train minillm", "saving", reached=HALFWAY, began=1.0)
    lines = words(live_lines(snapshot(saving, row("report"), stopping=True), 100, 20))
    assert lines[2] == "stopping, and saving what there is of train minillm, for 30 s at most"
    assert lines[3] == "train minillm  ━━━━━━━━━━━━━━━━  120/400  2.5/s  saving  train/loss 3.211  valid/loss 3.4"
    stopped = row("train minillm", "stopped", reached=HALFWAY, began=1.0, seconds=4.0, note="the flow was cancelled")
    end = words(final_lines(snapshot(stopped, stopping=True), 100))
    assert end[2] == "train minillm  stopped  120/400  0:00:04"
    assert end[3].startswith("Stopped.")
