"""Forked workers are processes like any other: heard, ended and never left behind, whoever dies."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from minillm.config import Runtime
from minillm.errors import BAD_INPUT
from minillm.stages import load_job
from minillm.stages.reading import Pack
from minillm.worker.startup import has_gpu
from tasks.running import forking
from tasks.running.forking import ForkedWorker, Template
from tasks.running.process_group import Group
from tasks.running.supervision import WorkerError, run_worker, worker_environment
from tests.conftest import ROOT
from tests.minillm.jobs import make_tokenizer, write_job
from tests.tasks.test_supervision import drain, gone
from tests.waiting import wait_for
from tests.workers import is_worker

WAITING = "the worker of an earlier attempt is still leaving; waiting for it"
pytestmark = pytest.mark.skipif(has_gpu(), reason="CUDA does not outlive a fork: no worker is forked where a GPU is")


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    """Start a template process that no other test uses."""
    template = Template({**os.environ, **worker_environment(Runtime(threads=1)), "FROM": "this test"})
    yield template
    template.end()
    template.process.wait(60)


def job(folder: Path) -> Path:
    """Write the spec of a job that packs a text."""
    text = folder / "plain.txt"
    text.write_text("the cat sleeps\n" * 100, encoding="utf-8")
    tokenizer = make_tokenizer(folder / "tokenizer")
    return write_job(folder, Pack(block_tokens=8), {"plain_text": text, "tokenizer": tokenizer})


def until_waiting(group: Group) -> None:
    while group.next_line(0.1) != WAITING:
        pass


def kill_once_there(group: Group, process: psutil.Process | subprocess.Popen[bytes], number: int) -> int:
    until_waiting(group)
    process.send_signal(number)
    drain(group)
    return group.process.wait()


def test_several_at_once_run_to_their_ends_in_processes_of_their_own(template: Template, tmp_path: Path):
    specs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        specs.append(job(tmp_path / name))
    with FileLock(tmp_path / "one" / "worker.lock"):
        with Group(template.fork(specs[0])) as first:
            until_waiting(first)
            with Group(template.fork(specs[1])) as second:
                assert drain(second)
            assert second.status == 0
            processes = [first.process.pid, second.process.pid, template.process.pid, os.getpid()]
            assert len(set(processes)) == 4
            worker = psutil.Process(first.process.pid)
            assert is_worker(worker)
            assert worker.environ()["FROM"] == "this test"
            assert os.getsid(worker.pid) == os.getpgid(worker.pid) == worker.pid
            first.terminate()
            drain(first)
        assert first.status == -signal.SIGTERM
    assert not (tmp_path / "one" / "summary.json").exists()
    assert (tmp_path / "two" / "summary.json").exists()
    with Group(template.fork(specs[0])) as again:
        drain(again)
    assert again.status == 0


def test_a_refusal_comes_through_in_its_own_characters(template: Template, tmp_path: Path):
    folder = tmp_path / "走るLäufer"
    folder.mkdir()
    spec = job(folder)
    (folder / "plain.txt").write_bytes(b"\xff\xfe")
    with Group(template.fork(spec)) as group:
        lines = drain(group)
    assert group.status == BAD_INPUT
    assert str(folder / "plain.txt") in lines[-1]


def test_the_signal_that_killed_it_is_known(template: Template, tmp_path: Path):
    with FileLock(tmp_path / "worker.lock"), Group(template.fork(job(tmp_path))) as group:
        assert kill_once_there(group, psutil.Process(group.process.pid), signal.SIGSEGV) == -signal.SIGSEGV


def test_where_the_template_is_killed_the_worker_goes_and_the_next_one_has_another(tmp_path: Path):
    environment = {**os.environ, **worker_environment(Runtime(threads=1))}
    template = Template(environment)
    spec = job(tmp_path)
    with FileLock(tmp_path / "worker.lock"), Group(template.fork(spec)) as group:
        worker: ForkedWorker | subprocess.Popen[str] = group.process
        assert kill_once_there(group, template.process, signal.SIGKILL) == -signal.SIGKILL
    wait_for(lambda: gone(worker.pid))
    with pytest.raises((ChildProcessError, ConnectionError)):
        template.fork(spec)


def test_the_end_of_a_template_is_seen_by_each_worker_whichever_others_live(tmp_path: Path):
    template = Template({**os.environ, **worker_environment(Runtime(threads=1))})
    spec = job(tmp_path)
    with FileLock(tmp_path / "worker.lock"), Group(template.fork(spec)) as first, Group(template.fork(spec)) as second:
        until_waiting(first)
        until_waiting(second)
        template.process.kill()
        wait_for(
            lambda: first.process.poll() == second.process.poll() == -signal.SIGKILL and not gone(second.process.pid)
        )
        first.kill()


def test_the_worker_ends_with_the_flow_and_the_template_after_it(tmp_path: Path):
    script = """
import os, sys, time
from pathlib import Path
from minillm.config import Runtime
from tasks.running import forking
from tasks.running.process_group import Group
from tasks.running.supervision import worker_environment
with Group(forking.fork_worker(Path(sys.argv[1]), os.environ | worker_environment(Runtime(threads=1)))) as group:
    while "waiting" not in (group.next_line(0.1) or ""): pass
    print(group.process.pid, forking._TEMPLATES[0].process.pid, flush=True)
    time.sleep(100)
"""
    with FileLock(tmp_path / "worker.lock"):
        command = [sys.executable, "-c", script, str(job(tmp_path))]
        flow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=ROOT)
        assert flow.stdout is not None
        processes = [int(pid) for pid in flow.stdout.readline().split()]
        assert len(processes) == 2
        assert not any(map(gone, processes))
        flow.kill()
        flow.wait()
        flow.stdout.close()
        wait_for(lambda: all(map(gone, processes)))


def test_a_template_that_was_killed_between_two_stages_is_replaced(tmp_path: Path):
    ready = load_job(job(tmp_path))
    run_worker(ready, lambda line: None, threading.Event())
    killed = forking._TEMPLATES[0].process
    killed.kill()
    killed.wait()
    run_worker(ready, lambda line: None, threading.Event())
    assert forking._TEMPLATES[0].process.pid != killed.pid


def test_a_template_that_cannot_start_is_a_failed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ready = load_job(job(tmp_path))
    monkeypatch.setenv("FROM", "a template of its own")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="the process that forks workers was killed"):
        run_worker(ready, lambda line: None, threading.Event())
