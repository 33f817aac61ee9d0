"""Stages with a real Prefect server, real workers and a real MLflow database."""

import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from minillm.errors import StageError
from minillm.store.artifacts import Store
from tasks.evaluation_sets import read_benchmarks
from tasks.running.supervision import WorkerStoppedError
from tests.small import small_config, write_rows
from tests.tasks.stages import (
    LONG,
    benchmark_only,
    data_stages,
    run,
    tracked_runs,
    training,
    when_training,
    with_data,
)

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_second_flow_run_finds_everything(tmp_path: Path):
    config = small_config(tmp_path)
    first = run(config, data_stages)
    assert set(first.names().values()) == {"Completed"}
    second = run(config, data_stages)
    assert set(second.names().values()) == {"Cached"}
    for label in first.states:
        assert second.artifact(label) == first.artifact(label)

    manifest = first.artifact("examples").manifest()
    assert manifest.settings["max_tokens"] == 140
    assert manifest.inputs["benchmarks"].digest == first.artifact("benchmarks").digest
    assert manifest.config["name"] == "small"
    assert manifest.versions["torch"].startswith("2.")

    parent, *nested = tracked_runs(config)
    computed, cached = nested[:4], nested[5:]
    assert all(r.data.tags["mlflow.parentRunId"] == parent.info.run_id for r in computed)
    assert {r.data.tags["cached"] for r in computed} == {"false"}
    assert {r.data.tags["cached"] for r in cached} == {"true"}
    by_name = {r.info.run_name: r for r in computed}
    for found in cached:
        origin = by_name[found.info.run_name]
        assert found.data.tags["computed_by"] == origin.info.run_id
        assert (
            found.data.metrics == {n: v for n, v in origin.data.metrics.items() if "/" not in n} or found.data.metrics
        )
    assert parent.data.params["student.initial.learning_rate"] == "0.001"
    assert by_name["filter examples"].data.params["max_tokens"] == "140"
    assert parent.inputs is not None
    assert {d.dataset.name for d in parent.inputs.dataset_inputs} == {"instructions", "plain_text", "benchmark/dolly"}
    assert {r.info.status for r in [parent, *nested]} == {"FINISHED"}


def test_a_changed_setting_recomputes_what_depends_on_it(tmp_path: Path, computed_data: Path):
    changed = run(with_data(tmp_path, computed_data, "data.max_malformed_share=0.5"), data_stages)
    assert changed.names() == {
        "prepare": "Cached",
        "benchmarks": "Cached",
        "examples": "Completed",
        "plain text": "Cached",
    }


def test_an_altered_result_is_computed_again(tmp_path: Path):
    config = small_config(tmp_path)
    before = run(config, benchmark_only).artifact("benchmarks")
    file = Path(before.path) / "dolly.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("hill", "bill"), encoding="utf-8")
    again = run(config, benchmark_only)
    assert again.names() == {"benchmarks": "Completed"}
    assert again.artifact("benchmarks") == before


def test_a_changed_source_file_is_read_again(tmp_path: Path):
    config = small_config(tmp_path)
    before = run(config, benchmark_only).artifact("benchmarks")
    write_rows(tmp_path / "benchmark.jsonl", [{"instruction": "Who?", "input": "", "output": "The cat."}])
    after = run(config, benchmark_only)
    assert after.names() == {"benchmarks": "Completed"}
    assert after.artifact("benchmarks").key != before.key


def test_the_same_stage_wanted_twice_at_once_is_computed_once(tmp_path: Path):
    outcome = run(
        small_config(tmp_path),
        lambda config: {"a": read_benchmarks.submit(config), "b": read_benchmarks.submit(config)},
    )
    assert sorted(outcome.names().values()) == ["Cached", "Completed"]


def test_bad_input_is_told_and_not_tried_again(tmp_path: Path):
    config = small_config(tmp_path)
    write_rows(tmp_path / "benchmark.jsonl", [{"instruction": "Who?", "input": ""}])
    outcome = run(config, data_stages)
    state = outcome.states["benchmarks"]
    assert state.is_failed()
    with pytest.raises(StageError, match=r"benchmark\.jsonl"):
        state.result()
    assert "benchmark.jsonl" in (state.message or ""), "the page shows the reason"
    assert outcome.task_runs["read benchmarks"].run_count == 1
    assert outcome.names()["plain text"] == "Completed", "an independent branch goes on"
    assert not outcome.states["examples"].is_completed()
    statuses = {r.info.run_name: r.info.status for r in tracked_runs(config)}
    assert statuses["read benchmarks"] == "FAILED"
    assert statuses["pack plain text"] == "FINISHED"


def test_a_killed_worker_is_started_again_and_continues_while_mlflow_is_away(
    tmp_path: Path, computed_data: Path, monkeypatch
):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    config = with_data(tmp_path, computed_data, *LONG)
    with when_training(config, 5, lambda process: process.send_signal(signal.SIGKILL)) as killed:
        outcome = run(config, training)
    assert killed.is_set()
    assert outcome.names() == {"train": "Completed"}
    assert outcome.task_runs["fine-tune initial"].run_count == 2

    artifact = outcome.artifact("train")
    records = [
        json.loads(line) for line in (Path(artifact.path) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    steps = [record["step"] for record in records if record["metrics"]]
    assert steps[-1] == 400
    assert min(steps[i + 1] for i in range(len(steps) - 1)) > 1, "it continued, it did not begin again"

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run(config, training).names() == {"train": "Cached"}
    (computed,) = [
        r for r in tracked_runs(config) if r.info.run_name == "fine-tune initial" and r.data.tags["cached"] == "false"
    ]
    assert computed.info.status == "FINISHED"
    client = MlflowClient(f"sqlite:///{Path(config.runtime.store) / 'mlflow.db'}")
    for name in ("train/loss", "valid/loss"):
        delivered = [point.step for point in client.get_metric_history(computed.info.run_id, name)]
        logged = {record["step"] for record in records if name in record["metrics"]}
        assert delivered == sorted(logged), "every step is there, and no step twice"

    samples = (Path(artifact.path) / "system_metrics.jsonl").read_text(encoding="utf-8").splitlines()
    for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes", "worker_memory_usage_megabytes"):
        points = client.get_metric_history(computed.info.run_id, f"system/{name}")
        assert [point.step for point in points] == list(range(1, len(samples) + 1)), "of both attempts, each once"
        assert max(point.value for point in points) > 0
    worker = client.get_metric_history(computed.info.run_id, "system/worker_memory_usage_megabytes")
    assert max(point.value for point in worker) < psutil.virtual_memory().total / 1e6


def test_ctrl_c_stops_the_worker_at_a_checkpoint_and_nothing_is_retried(tmp_path: Path, computed_data: Path):
    config = with_data(tmp_path, computed_data, *LONG)
    workers: list[psutil.Process] = []

    def interrupt(process: psutil.Process) -> None:
        workers.append(process)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test runner's workers may ignore it
    try:
        with when_training(config, 5, interrupt), pytest.raises(KeyboardInterrupt):
            run(config, training)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not psutil.pid_exists(workers[0].pid) or workers[0].status() == psutil.STATUS_ZOMBIE
    statuses = {r.info.run_name: r.info.status for r in tracked_runs(config)}
    assert statuses["fine-tune initial"] == "KILLED"
    *_, newest = sorted(Path(config.runtime.store).glob("work/train-*/checkpoints/step-*/checkpoint.json"))
    assert json.loads(newest.read_text(encoding="utf-8"))["step"] >= 10


def test_a_stage_that_takes_too_long_is_stopped(tmp_path: Path, computed_data: Path):
    config = with_data(tmp_path, computed_data, "student.initial.steps=100000", "runtime.timeout_hours=0.003")
    outcome = run(config, training)
    with pytest.raises(WorkerStoppedError, match="timeout_hours"):
        outcome.states["train"].result()
    assert outcome.task_runs["fine-tune initial"].run_count == 1


def test_a_store_has_no_locks_left_after_use(tmp_path: Path):
    config = small_config(tmp_path)
    artifact = run(config, benchmark_only).artifact("benchmarks")
    with Store(config.runtime.store).lock(artifact.key).acquire(timeout=0):
        pass
