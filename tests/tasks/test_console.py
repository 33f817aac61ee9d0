"""What a person sees of a run on a real pseudo-terminal, and what stands in its log file."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL
from rich.text import Text

from tasks.running.log_file import LogFile
from tasks.running.screen import Screen
from tests.conftest import ROOT
from tests.small import small_config, write_rows
from tests.tasks.stages import LONG, with_data
from tests.terminal import Terminal, terminal
from tests.workers import is_worker

PASSWORD = "tell-nobody-this"
STAGES = """
import sys
from pathlib import Path
import flows
from minillm.config.loading import load_config
from tasks.running.console import shown
from tests.tasks import stages
with shown("stages"):
    stages.run(load_config(sys.argv[1], sys.argv[3:]), getattr(stages, sys.argv[2]))
    print("the result\\x1b[2J")
"""
ROWS = """
import sys, time
from pathlib import Path
import flows
from tasks.running.console import followed, shown
with shown("rows"), followed("quickstart", "amber-fox", Path(sys.argv[1])) as console:
    board = console.board
    for number in range(24):
        board.submit(f"stage {number}")
    for number in range(24):
        board.begin(f"stage {number}", "", Path(sys.argv[1]) / "metrics.jsonl")
        print(f"said of {number} https://ann:tell-nobody-this@host/", file=sys.stderr)
        time.sleep(0.15)
        board.end(f"stage {number}", "", "done")
    print("10 %\\r20 %", file=sys.stderr)
    print("the result")
"""


def started(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def environment() -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    return plain | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": str(PREFECT_API_URL.value() or "")}


@pytest.fixture
def on_terminal(tmp_path: Path) -> Iterator[object]:
    """Start a program on a terminal."""
    open_ones = []

    def start(command: list[str], columns: int = 100, lines: int = 50) -> Terminal:
        open_ones.append(terminal(command, columns, lines, tmp_path, environment()))
        return open_ones[-1].__enter__()

    yield start
    for one in open_ones:
        one.__exit__(None, None, None)


BROKEN = """
import flows
from prefect import State, flow
from tasks.serving.server import run_flow

@flow(name="broken")
def broken() -> State:
    raise RuntimeError("no stage tells of this: http://ann:tell-nobody-this@host/")

state = run_flow(broken)
"""


def log_of(store: Path) -> str:
    (path,) = (store / "logs").glob("*.log")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (40, 10), (100, 60)])
def test_24_stages_fit_any_terminal(on_terminal, tmp_path: Path, columns: int, lines: int):
    there = on_terminal(started(ROWS, str(tmp_path)), columns, lines)
    assert there.wait() == 0
    live = [picture for picture in there.pictures if any("  and " in line or "stage 23" in line for line in picture)]
    assert live
    for picture in live[:-1]:
        assert len(picture) <= lines
        assert sum(line.startswith("quickstart  amber-fox") for line in picture) <= 1, "nothing is left of the last"
    assert any("running" in line for picture in live for line in picture)
    end = [row.rstrip() for row in there.picture.rows]
    assert sum(line.startswith("quickstart  amber-fox") for line in end) == 1
    assert [line for line in end if line.startswith("stage ")][-1].startswith("stage 23  done")
    assert "the result" in end
    assert end.index("the result") > max(at for at, line in enumerate(end) if line.startswith("stage "))
    assert PASSWORD not in there.written + log_of(tmp_path)
    assert "said of 3 https://host/" in log_of(tmp_path)
    assert "  20 %\n" in log_of(tmp_path), "the last state of another library's bar"


def test_a_window_that_changes_its_size_has_one_table(on_terminal, tmp_path: Path):
    there = on_terminal(started(ROWS, str(tmp_path)), 100, 40)
    there.until(lambda screen: any(line.startswith("stage 3 ") and "running" in line for line in screen))
    for columns, lines in ((60, 40), (100, 40), (45, 40), (120, 40)):
        there.resize(columns, lines)
        now = len(there.pictures)
        there.until(lambda screen, now=now: len(there.pictures) > now + 1)
        heads = [line for line in there.picture.screen if line.startswith("quickstart  amber-fox")]
        assert len(heads) == 1, "\n".join(there.picture.screen)
    assert there.wait() == 0


@pytest.mark.usefixtures("prefect_server")
def test_cached_retried_and_done_stages_on_a_terminal(on_terminal, tmp_path: Path, computed_data: Path):
    config = with_data(tmp_path, computed_data, *LONG)
    arguments = started(STAGES, str(tmp_path / "small.yaml"), "training", *LONG)
    there = on_terminal(arguments, 120, 30)

    def seen(*words: str):
        return lambda screen: any(all(word in line for word in words) for line in screen)

    there.until(seen("prepare tokenizer", "cached"))
    there.until(seen("fine-tune initial", "━", "/400", "/s", "left", "train/loss"))
    for process in psutil.Process(there.process.pid).children(recursive=True):
        if is_worker(process):
            process.kill()
    there.until(seen("fine-tune initial", "attempt 2"))
    assert there.wait() == 0
    end = [row.rstrip() for row in there.picture.rows]
    assert any(re.match(r"fine-tune initial  done  0:0\d:\d\d  attempt 2$", line) for line in end)
    assert any(re.match(r"4 cached  prepare tokenizer, read benchmarks, filter", line) for line in end)
    assert end[-2].startswith("the result\ufffd[2J") or "the result\ufffd[2J" in end
    log = log_of(Path(config.runtime.store))
    assert "was killed by SIGKILL" in log
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  fine-tune initial: \[█", log, re.MULTILINE)


@pytest.mark.usefixtures("prefect_server")
def test_a_stage_that_fails_is_told_at_the_end(on_terminal, tmp_path: Path):
    small_config(tmp_path)
    write_rows(tmp_path / "benchmark.jsonl", [{"instruction": "Who?", "input": ""}])
    there = on_terminal(started(STAGES, str(tmp_path / "small.yaml"), "data_stages"), 80, 24)
    assert there.wait() == 0
    end = [row.rstrip() for row in there.picture.rows]
    assert any(line.startswith("read benchmarks    failed") for line in end)
    assert any(line.startswith("1 not computed  filter examples") for line in end)
    assert any(line.startswith("read benchmarks failed: ") for line in end)


@pytest.mark.usefixtures("prefect_server")
def test_an_error_that_belongs_to_no_stage_is_told_at_the_end(on_terminal):
    there = on_terminal(started(BROKEN), 80, 24)
    assert there.wait() == 0
    shown = "\n".join(row.rstrip() for row in there.picture.rows)
    assert "RuntimeError: no stage tells of this: http://host/" in shown
    assert PASSWORD not in there.written


def test_a_terminal_without_lines_has_other_signs():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="backslashreplace")
    Screen(stream).paint(lambda width, height: [Text("a ━━ ─ 模 é…")])
    stream.flush()
    assert stream.buffer.getvalue().decode("latin-1") == "\ra == - ? é~\x1b[K\n\x1b[J"  # type: ignore[attr-defined]


def test_a_disk_that_is_gone_ends_the_log_file_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    log = LogFile()
    log.add("12:00:00  before it was known where to")
    (tmp_path / "logs").write_text("no folder", encoding="utf-8")
    log.open(tmp_path / "logs" / "run.log")
    log.add("12:00:01  after")
    log.close()
    assert "the log file ends here" in capfd.readouterr().err


@pytest.mark.usefixtures("prefect_server")
def test_ctrl_c_says_what_is_being_saved(on_terminal, tmp_path: Path, computed_data: Path):
    config = with_data(tmp_path, computed_data, *LONG)
    there = on_terminal(started(STAGES, str(tmp_path / "small.yaml"), "training", *LONG), 100, 24)
    there.until(lambda screen: any("fine-tune initial" in line and "/400" in line for line in screen))
    there.type("\x03")
    there.until(lambda screen: "stopping, and saving what there is of fine-tune initial, for 30 s at most" in screen)
    assert there.wait() != 0
    end = [row.rstrip() for row in there.picture.rows]
    assert any(re.match(r"fine-tune initial  stopped  \d+/400  0:00:", line) for line in end)
    assert any(line.startswith("Stopped. Finished stages are in the store") for line in end)
    assert re.search(r"fine-tune initial: stopped after step \d+; the next", log_of(Path(config.runtime.store)))


@pytest.mark.usefixtures("prefect_server")
def test_without_a_terminal_there_are_lines_and_a_log_file_with_the_same(tmp_path: Path):
    config = small_config(tmp_path)
    done = subprocess.run(
        started(STAGES, str(tmp_path / "small.yaml"), "benchmark_only"),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert all(re.match(r"\d\d:\d\d:\d\d  \S.*: ", line) for line in done.stderr.splitlines()), done.stderr
    assert "read benchmarks: Finished in state Completed()" in done.stderr
    assert "\x1b" not in done.stderr
    log = log_of(Path(config.runtime.store))
    (path,) = re.findall(r"^log +(\S+)$", done.stdout, re.MULTILINE)
    assert f"stages: log file {path}" in done.stderr
    assert Path(path).read_text(encoding="utf-8") == log
    kept = {re.sub(r"^\S+ ", "", line) for line in log.splitlines()}
    assert set(done.stderr.splitlines()) <= kept
    assert any(line.endswith("the result\ufffd[2J") for line in kept)
    assert done.stdout.splitlines()[-1] == "the result\x1b[2J", "as it was"
