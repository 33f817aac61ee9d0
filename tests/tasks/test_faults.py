"""Runs survive faults of the machine: full and read-only disks, lack of memory, workers that hang."""

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from mlflow import MlflowClient

from minillm.config import Config, Runtime
from minillm.errors import StageError
from minillm.stages.base import Job
from minillm.stages.reading import Pack
from minillm.store.artifacts import Store
from minillm.store.manifest import Artifact
from tasks.running.supervision import WorkerError, run_worker
from tests.minillm.jobs import make_tokenizer
from tests.mlflow_server import mlflow_server, slowed
from tests.tasks.stages import LONG, run, steps_logged, training, when_training, with_data
from tests.workers import is_worker

pytestmark = pytest.mark.usefixtures("prefect_server")

DISK = "64m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of its own, small enough to be filled."""
    folder = tmp_path / "Ein kleiner Datenträger 磁盘"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a disk to fill needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Fill the disk to the last page; its file system is in memory and keeps no reserve."""
    with (disk / "filler").open("ab", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while stream.write(b"\0" * size) == size:
                    pass


def test_a_disk_that_fills_up_while_checkpointing_is_named_and_nothing_is_lost(disk: Path, computed_data: Path):
    config = with_data(disk, computed_data, *LONG)
    with when_training(config, 5, lambda process: fill(disk)):
        outcome = run(config, training)
    with pytest.raises(StageError, match=r"no space left on its disk .* make room .* runtime.store"):
        outcome.states["train"].result()
    assert outcome.task_runs["fine-tune initial"].run_count == 1, "another attempt would meet the same disk"
    assert not list(Path(config.runtime.store).glob("artifacts/train-*"))
    (disk / "filler").unlink()
    outcome = run(config, training)
    assert outcome.names() == {"train": "Completed"}
    assert steps_logged(outcome.artifact("train"))[-1] == 400


def test_a_disk_that_is_full_before_an_artifact_is_written(disk: Path, computed_data: Path):
    config = with_data(disk, computed_data)
    fill(disk)
    outcome = run(config, training)
    with pytest.raises(StageError, match="no space left on its disk"):
        outcome.states["train"].result()
    (disk / "filler").unlink()
    assert run(config, training).names() == {"train": "Completed"}


def test_a_store_that_cannot_be_written_to_is_refused_at_once(disk: Path):
    Store(disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StageError, match=r"runtime.store .*store cannot be written to \(Read-only file system\)"):
        Store(disk / "store")


def test_a_worker_without_memory_says_what_to_lower(tmp_path: Path, computed_data: Path):
    config = with_data(tmp_path, computed_data, "student.model.architecture.n_inner=20000000000")
    outcome = run(config, training)
    with pytest.raises(StageError, match=r"out of memory \(.*lower runtime.micro_batch_size"):
        outcome.states["train"].result()
    assert outcome.task_runs["fine-tune initial"].run_count == 1


def test_a_worker_that_hangs_is_killed_and_may_be_started_again(tmp_path: Path):
    text = tmp_path / "plain.txt"
    text.write_text("the cat sleeps\n" * 100, encoding="utf-8")
    output = tmp_path / "output"
    output.mkdir()
    job = Job(
        kind=Pack.kind,
        settings=Pack(block_tokens=8),
        inputs={"plain_text": text, "tokenizer": make_tokenizer(tmp_path / "tokenizer")},
        output=output,
        work=tmp_path,
        runtime=Runtime(silent_minutes=0.05),
    )

    hanging: list[psutil.Process] = []

    def hang(line: str) -> None:
        if "waiting for it" in line:
            hanging.extend(filter(is_worker, psutil.Process().children(recursive=True)))
            hanging[0].suspend()

    told = r"said and wrote nothing for 0.05 minutes \(runtime.silent_minutes\)"
    with FileLock(tmp_path / "worker.lock"), pytest.raises(WorkerError, match=told):
        run_worker(job, hang, threading.Event())
    assert [process for process in hanging if process.is_running()] == []


def test_a_clock_that_jumps_moves_nothing(tmp_path: Path, computed_data: Path, monkeypatch: pytest.MonkeyPatch):
    config, real, jumps = with_data(tmp_path, computed_data, *LONG, "runtime.silent_minutes=0.7"), time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jumps[-1])
    with when_training(config, 10, lambda process: jumps.append(-7200.0)):
        outcome = run(config, training)
    jumps.append(0.0)
    assert len(jumps) == 3
    assert outcome.names() == {"train": "Completed"}
    assert outcome.task_runs["fine-tune initial"].run_count == 1
    artifact = outcome.artifact("train")
    timings = artifact.manifest().timings
    assert timings is not None
    assert 0 < timings.seconds < 300
    assert points(MlflowClient(f"sqlite:///{store_of(config) / 'mlflow.db'}"), "valid/loss") == steps_with(
        artifact, "valid/loss"
    )


@pytest.mark.long
def test_mlflow_that_is_slow_holds_up_no_stage(tmp_path: Path, computed_data: Path, monkeypatch: pytest.MonkeyPatch):
    config = with_data(tmp_path, computed_data, *LONG)
    with mlflow_server(tmp_path) as server, slowed(server, seconds=1.5) as slow:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", slow)
        outcome = run(config, training)
        artifact, task = outcome.artifact("train"), outcome.task_runs["fine-tune initial"]
        timings = artifact.manifest().timings
        assert timings is not None
        assert task.total_run_time.total_seconds() < timings.seconds + 6
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        assert run(config, training).names() == {"train": "Cached"}  # and it sends what the first run had no time for
        client = MlflowClient(server)
        assert points(client, "valid/loss") == steps_with(artifact, "valid/loss")
        runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
        assert {found.info.status for found in runs} == {"FINISHED"}


def store_of(config: Config) -> Path:
    return Path(config.runtime.store)


def points(client: MlflowClient, name: str) -> list[int]:
    """Return the steps of one of the training's curves, as MLflow has them."""
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()], "tags.stage = 'train'")
    (training_run,) = [found for found in runs if found.data.tags["cached"] == "false"]
    return [point.step for point in client.get_metric_history(training_run.info.run_id, name)]


def steps_with(artifact: Artifact, name: str) -> list[int]:
    lines = (Path(artifact.path) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["step"] for record in map(json.loads, lines) if name in record["metrics"]]


def test_a_worker_that_is_stopped_in_the_middle_goes_on_from_its_checkpoint(tmp_path: Path, computed_data: Path):
    config = with_data(tmp_path, computed_data, *LONG, "runtime.silent_minutes=0.25")
    with when_training(config, 15, lambda process: process.send_signal(signal.SIGSTOP)):
        outcome = run(config, training)
    assert outcome.names() == {"train": "Completed"}
    assert outcome.task_runs["fine-tune initial"].run_count == 2
    assert steps_logged(outcome.artifact("train"))[-1] == 400
