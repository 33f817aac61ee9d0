"""How far a stage is, read from a growing metrics.jsonl."""

import time
from pathlib import Path

from minillm.worker.progress import append_line
from tasks.running.reached import MetricsFollower


def write(path: Path, step: int, at: float, total: int = 10, **metrics: float) -> None:
    append_line(path, {"time": at, "step": step, "total": total, "metrics": metrics})


def test_nothing_is_known_before_the_first_line(tmp_path: Path):
    assert MetricsFollower(tmp_path / "metrics.jsonl").read() is None


def test_pace_time_left_and_the_last_figures(tmp_path: Path):
    path, now = tmp_path / "metrics.jsonl", time.time() + 1
    follower = MetricsFollower(path)
    write(path, 2, now, loss=3.0)
    write(path, 4, now + 1.0)
    reached = follower.read()
    assert reached is not None
    assert (reached.step, reached.total, reached.share) == (4, 10, 0.4)
    assert reached.per_second == 2.0
    assert reached.seconds_left == 3.0
    assert reached.figures == {"loss": 3.0}, "of the last line that has some"
    write(path, 10, now + 7.0, loss=2.0)
    reached = follower.read()
    assert reached is not None
    assert (reached.step, reached.per_second, reached.seconds_left) == (10, 8 / 7, None)
    assert reached.figures == {"loss": 2.0}


def test_the_pace_is_that_of_this_attempt(tmp_path: Path):
    path, now = tmp_path / "metrics.jsonl", time.time() + 1
    write(path, 5, now - 3600)
    follower = MetricsFollower(path)
    reached = follower.read()
    assert reached is not None
    assert (reached.step, reached.per_second, reached.seconds_left) == (5, None, None)
    write(path, 6, now)
    write(path, 8, now + 1)
    reached = follower.read()
    assert reached is not None
    assert reached.per_second == 2.0


def test_a_total_that_nobody_knows_and_a_file_that_begins_anew(tmp_path: Path):
    path, now = tmp_path / "metrics.jsonl", time.time() + 1
    follower = MetricsFollower(path)
    for step in range(30):
        write(path, step, now + step, total=0)
    reached = follower.read()
    assert reached is not None
    assert (reached.step, reached.total, reached.seconds_left, reached.share) == (29, 0, None, 1.0)
    path.unlink()
    write(path, 1, now + 40)
    reached = follower.read()
    assert reached is not None
    assert reached.step == 1
