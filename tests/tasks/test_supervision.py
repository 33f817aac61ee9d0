"""Supervision of real process groups: workers are heard, ended and never left behind."""

import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import psutil
import pytest

from minillm.config import Runtime
from minillm.stages.base import Job
from minillm.stages.measuring import Exposure
from tasks.running.process_group import Group, piped, watched
from tasks.running.supervision import WorkerError, _cause, run_worker
from tests.conftest import ROOT
from tests.waiting import wait_for


def drain(group: Group) -> list[str]:
    lines = []
    while (line := group.next_line(0.05)) is not None:
        lines += [line] if line else []
    return lines


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_lines_of_both_streams_and_the_exit_status_come_back():
    with Group(piped(watched(["sh", "-c", "echo one; echo two >&2; exit 5"]))) as group:
        lines = drain(group)
    assert sorted(lines) == ["one", "two"]
    assert group.status == 5


def test_standard_input_is_empty_so_that_nothing_waits_for_an_answer():
    with Group(piped(watched(["cat"]))) as group:
        assert drain(group) == []
    assert group.status == 0


def test_a_child_that_outlives_its_parent_is_killed():
    with Group(piped(watched(["sh", "-c", "sleep 100 & echo $!"]))) as group:
        child = int(drain(group)[0])
    wait_for(lambda: gone(child), 10)


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period():
    with Group(piped(watched(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])), 0.5) as group:
        while group.next_line(0.1) != "ready":
            pass
        group.terminate()
        drain(group)
    assert group.status == -signal.SIGKILL


def test_sigterm_lets_a_process_leave_by_itself():
    script = "trap 'echo saved; exit 143' TERM; echo ready; while :; do sleep 0.05; done"
    with Group(piped(watched(["sh", "-c", script]))) as group:
        while group.next_line(0.1) != "ready":
            pass
        group.terminate()
        assert drain(group)[-1] == "saved"
    assert group.status == 143


def test_the_group_ends_when_the_flow_process_is_killed(tmp_path: Path):
    script = """
import os, sys, time
from tasks.running.process_group import Group, piped, watched
with Group(piped(watched(["sh", "-c", "echo $$; sleep 100"]))) as group:
    while not (line := group.next_line(0.1)): pass
    print(line, flush=True)
    time.sleep(100)
"""
    flow = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert flow.stdout is not None
    worker = int(flow.stdout.readline())
    assert psutil.pid_exists(worker)
    flow.kill()
    flow.wait()
    flow.stdout.close()
    wait_for(lambda: gone(worker), 10)


def test_a_signal_is_named_with_its_likely_reason_and_remedy():
    assert "SIGKILL" in _cause(-9, deque(), "")
    assert "runtime.micro_batch_size" in _cause(-9, deque(), "")
    assert "SIGSEGV" in _cause(1, deque(["  exitcode  : -11 (pid: 7)"]), ""), (
        "as the launcher of several processes says it"
    )
    others = deque(["  exitcode  : -15 (pid: 6)", "  exitcode  : 1 (pid: 7)"])
    assert _cause(1, others, "ValueError: x") == "failed with exit status 1: ValueError: x", (
        "the launcher ended the other"
    )
    assert _cause(2, deque(), "") == "failed with exit status 2"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_worker_is_told_in_one_line_with_its_last_words(tmp_path: Path, processes: int):
    """This line is the flow's last; the log above it has the rest."""
    job = Job(
        kind="exposure",  # joins a process group, where tracebacks look different
        settings=Exposure(role="sft", benchmark="dolly", max_length=4, prompts=None, precision="float32"),
        inputs={},
        output=tmp_path / "output",
        work=tmp_path,
        runtime=Runtime(processes=processes),
    )
    (tmp_path / "output").mkdir()
    with pytest.raises(WorkerError) as failure:
        run_worker(job, lambda line: None, threading.Event())
    words = repr(failure.value)
    assert words == "WorkerError: the worker failed with exit status 1: KeyError: 'responses'"
    assert "\n" not in words
    assert len(str(failure.value).splitlines()) > 10, "the last lines of the log"
