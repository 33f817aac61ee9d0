"""metrics.jsonl after a full disk or a power cut: whole lines are read, broken ones skipped, and writing goes on."""

import json
import multiprocessing
from pathlib import Path

import pytest

from minillm.worker.progress import Progress, append_line, read_lines, read_metrics

WHOLE = {"time": 1.0, "step": 1, "total": 9, "metrics": {"train/loss": 3.0}}
LATER = {"time": 2.0, "step": 2, "total": 9, "metrics": {"train/loss": 2.0}}
DAMAGED = {
    "half a line": b'{"time": 1.5, "step": 2, "met',
    "zeros of a power cut": b"\0" * 40,
    "a number": b"7\n",
    "no metrics": b'{"time": 1.5, "step": 2}\n',
    "a step that is no number": b'{"time": 1.5, "step": "2", "metrics": {}}\n',
    "a metric that is no number": b'{"time": 1.5, "step": 2, "metrics": {"train/loss": null}}\n',
    "a time that is none": b'{"time": NaN, "step": 2, "metrics": {}}\n',
    "no text": b"\xff\xfe\n",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_line_behind_damage_is_whole_and_the_damage_is_told_once(damage: str, tmp_path: Path, caplog):
    path = tmp_path / "metrics.jsonl"
    append_line(path, WHOLE)
    with path.open("ab") as stream:
        stream.write(DAMAGED[damage])
    assert [line.step for line in read_lines(path)[0]] == [1]
    append_line(path, LATER)
    for _ in range(3):
        assert list(read_metrics(path)) == [(1, "train/loss", 3.0), (2, "train/loss", 2.0)]
    assert len([record for record in caplog.records if str(path) in record.getMessage()]) == 1


def test_a_whole_line_that_only_lacks_its_end_is_kept(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(WHOLE), encoding="utf-8")
    assert read_lines(path) == ([], 0), "it may be being written"
    append_line(path, LATER)
    assert [line.step for line in read_lines(path)[0]] == [1, 2]


def test_a_reader_goes_on_from_its_place_while_the_file_grows(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, WHOLE)
    _, place = read_lines(path)
    with path.open("ab") as stream:
        stream.write(b'{"torn')
    assert read_lines(path, place) == ([], place)
    append_line(path, LATER)
    lines, end = read_lines(path, place)
    assert ([line.step for line in lines], end) == ([2], path.stat().st_size)


def test_a_stage_goes_on_behind_a_torn_line(tmp_path: Path):
    Progress(tmp_path, 9, "steps").log(1, {"train/loss": 3.0, "valid/loss": float("nan")})
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"time": 1')
    Progress(tmp_path, 9, "steps").log(2, {"train/loss": 2.0})
    assert [line.step for line in read_lines(tmp_path / "metrics.jsonl")[0]] == [1, 2]


def _fill(path: Path, first: int) -> None:
    for step in range(first, first + 300):
        append_line(path, {"time": 1.0, "step": step, "metrics": {}})


def test_two_writers_tear_no_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    writers = [multiprocessing.get_context("fork").Process(target=_fill, args=(path, n)) for n in (0, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(line.step for line in read_lines(path)[0]) == [*range(300), *range(1000, 1300)]
