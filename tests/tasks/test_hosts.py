"""A worker group on two machines, over ssh, trains like one process and never leaves a worker behind."""

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from minillm.config import Runtime
from minillm.errors import StageError
from minillm.stages.base import Job
from minillm.worker.progress import read_metrics
from tasks.running.hosts import Part
from tasks.running.supervision import WorkerError, run_worker
from tests.conftest import ROOT
from tests.machines import NETWORK, machines
from tests.minillm.trainings import make_inputs, settings, text_inputs, without_dropout
from tests.waiting import wait_for


class Cluster:
    """Two machines that share a folder, and a third that does not."""

    def __init__(self, addresses: list[str], shared: Path) -> None:
        self.addresses, self.shared = addresses, shared
        self.inputs = text_inputs(make_inputs(shared))

    def job(self, name: str, hosts: list[str], steps: int = 6) -> Job:
        """Return a fine-tuning job with one process on each host, or one process here if no hosts are given."""
        work = self.shared / name
        (work / "output").mkdir(parents=True)
        stage = without_dropout(settings("sft", steps=steps, select_by="validation_loss"))
        runtime = Runtime(threads=1, checkpoint_every=10)
        if hosts:
            hostfile = work / "hosts"
            hostfile.write_text(
                "# one process each\n" + "".join(f"{host} slots=1\n" for host in hosts), encoding="utf-8"
            )
            shares = {"processes": len(hosts), "zero_stage": 2, "hostfile": str(hostfile)}
            runtime = runtime.model_copy(update=shares)
        inputs, output = self.inputs, work / "output"
        return Job(kind=stage.kind, settings=stage, inputs=inputs, output=output, work=work, runtime=runtime)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("machines")
    with machines(folder, count=3, blind=1) as addresses:
        yield Cluster(addresses, folder / "shared")


def workers(job: Job) -> list[psutil.Process]:
    """Return the worker processes of a job on all machines."""
    spec = str(job.work / "job.json")
    found = [process for process in psutil.process_iter(["cmdline"]) if spec in (process.info["cmdline"] or [])]
    return [process for process in found if "minillm.worker" in process.info["cmdline"][:4]]


def network(process: int | str) -> str:
    return str(Path(f"/proc/{process}/ns/net").readlink())


def networks(processes: list[psutil.Process]) -> set[str]:
    return {network(process.pid) for process in processes}


def training(job: Job) -> bool:
    return any(job.work.glob("checkpoints/step-*/checkpoint.json"))


def losses(job: Job) -> dict[int, float]:
    """Return the validation loss by step; training losses are means over seconds, so they depend on the machine."""
    return {step: value for step, name, value in read_metrics(job.output / "metrics.jsonl") if name == "valid/loss"}


def when(condition: Callable[[], bool], action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=lambda: (wait_for(condition), action()))
    thread.start()
    return thread


def test_two_machines_train_as_one_process(cluster: Cluster):
    alone, both = cluster.job("alone", []), cluster.job("both", cluster.addresses[:2], steps=6)
    seen: set[str] = set()
    watcher = when(lambda: len(networks(workers(both))) == 2, lambda: seen.update(networks(workers(both))))
    log: list[str] = []
    run_worker(both, log.append, threading.Event())
    watcher.join()
    run_worker(alone, lambda line: None, threading.Event())
    assert losses(both) == pytest.approx(losses(alone), rel=1e-4)
    assert list(losses(both)) == [4, 6]
    assert network("self") not in seen
    assert len([line for line in log if "loss" in line]) == len({line for line in log if "loss" in line})


def test_when_one_rank_dies_all_end_at_once_and_another_attempt_continues(cluster: Cluster):
    job = cluster.job("dying", cluster.addresses[:2], steps=2000)
    died = []

    def kill_one() -> None:
        workers(job)[-1].kill()
        died.append(time.monotonic())

    killer = when(lambda: training(job), kill_one)
    with pytest.raises(WorkerError):
        run_worker(job, lambda line: None, threading.Event())
    killer.join()
    assert time.monotonic() - died[0] < 10
    assert workers(job) == []
    stop, log = threading.Event(), []
    # The worker says that it continues before it can stop at a checkpoint; after its first step it can.
    stopper = when(lambda: any(" steps," in line for line in log), stop.set)
    with pytest.raises(Exception, match="the flow was cancelled"):
        run_worker(job, log.append, stop)
    stopper.join()
    wait_for(lambda: workers(job) == [])
    assert any("continuing from the checkpoint" in line for line in log)
    assert any("stopped after step" in line for line in log), "cancelled, it leaves at a checkpoint"


def test_on_one_machine_a_rank_that_dies_ends_all_at_once_too(tmp_path: Path):
    job = Cluster([], tmp_path).job("two", [], steps=2000)
    job = job.model_copy(update={"runtime": job.runtime.model_copy(update={"processes": 2, "zero_stage": 2})})
    died = []

    def kill_one() -> None:
        workers(job)[-1].kill()
        died.append(time.monotonic())

    killer = when(lambda: training(job), kill_one)
    with pytest.raises(WorkerError, match="SIGKILL"):
        run_worker(job, lambda line: None, threading.Event())
    killer.join()
    assert time.monotonic() - died[0] < 10
    assert workers(job) == []


def test_when_the_flow_is_killed_no_machine_goes_on(cluster: Cluster):
    job = cluster.job("orphaned", cluster.addresses[:2], steps=2000)
    (job.work / "given.json").write_text(job.model_dump_json(), encoding="utf-8")
    script = f"""
import threading
from pathlib import Path
from minillm.stages import load_job
from tasks.running.hosts import Part
from tasks.running.supervision import run_worker
run_worker(load_job(Path({str(job.work / "given.json")!r})), print, threading.Event())
"""
    flow = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: training(job))
    assert len(networks(workers(job))) == 2
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    wait_for(lambda: workers(job) == [], 15)


def test_a_machine_that_does_not_have_the_store_is_named(cluster: Cluster):
    job = cluster.job("unseen", [cluster.addresses[0], cluster.addresses[2]])
    with pytest.raises(
        StageError, match=rf"{cluster.addresses[2]} does not have .*job.json: this folder and runtime.store must be on"
    ):
        run_worker(job, lambda line: None, threading.Event())


def test_a_machine_that_cannot_be_reached_is_named(cluster: Cluster):
    nobody = f"{NETWORK}.250"
    job = cluster.job("unreachable", [cluster.addresses[0], nobody])
    with pytest.raises(WorkerError, match=re.escape(nobody)):
        run_worker(job, lambda line: None, threading.Event())


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh: apt-get install openssh-client")
def test_ssh_takes_a_host_for_a_host_whatever_its_name(tmp_path: Path):
    assert Part("-V", ["true"], {}, tmp_path).status() == 255, "as an option it prints ssh's version, and succeeds"
