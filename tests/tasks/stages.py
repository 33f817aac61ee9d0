"""Helpers that run stages in a flow of their own and disturb their workers."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.futures import PrefectFuture

from minillm.config import Config
from minillm.store.manifest import Artifact
from tasks.data import filter_examples, pack_plain_text, prepare
from tasks.evaluation_sets import read_benchmarks
from tasks.running.session import tracked
from tasks.training import fine_tune_initial_student
from tests.small import small_config
from tests.workers import workers_in

LONG = ("student.initial.steps=400", "student.initial.evaluate_every=10", "runtime.checkpoint_every=10")

Stages = Callable[[Config], Mapping[str, PrefectFuture[Any]]]


@dataclass
class Outcome:
    """Final states of the stages of one flow run."""

    states: dict[str, State]
    task_runs: dict[str, TaskRun]

    def names(self) -> dict[str, str]:
        return {label: state.name or "" for label, state in self.states.items()}

    def artifact(self, label: str) -> Artifact:
        value = self.states[label].result()
        assert isinstance(value, Artifact)
        return value


def run(config: Config, stages: Stages) -> Outcome:
    """Run stages in a flow of their own until all have ended, well or not."""
    states: dict[str, State] = {}
    flow_runs: list[str] = []

    @flow(name="stages")
    def stages_flow() -> None:
        with tracked(config) as session:
            flow_runs.append(session.flow_run_id)
            futures = stages(config)
            for label, future in futures.items():
                future.wait()
                states[label] = future.state

    stages_flow()
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=flow_runs))  # type: ignore[arg-type]
        found = client.read_task_runs(flow_run_filter=wanted)
    return Outcome(states, {task_run.name: task_run for task_run in found})


def data_stages(config: Config) -> Mapping[str, PrefectFuture[Any]]:
    prepared = prepare.submit(config, config.student.model)
    benchmarks = read_benchmarks.submit(config)
    return {
        "prepare": prepared,
        "benchmarks": benchmarks,
        "examples": filter_examples.submit(config, prepared, benchmarks),
        "plain text": pack_plain_text.submit(config, prepared),
    }


def benchmark_only(config: Config) -> Mapping[str, PrefectFuture[Any]]:
    return {"benchmarks": read_benchmarks.submit(config)}


def training(config: Config) -> Mapping[str, PrefectFuture[Any]]:
    stages = data_stages(config)
    return {
        "train": fine_tune_initial_student.submit(config, config.student.model, stages["prepare"], stages["examples"])
    }


def tracked_runs(config: Config) -> list[Run]:
    client = MlflowClient(f"sqlite:///{Path(config.runtime.store) / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(config.name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], order_by=["attribute.start_time"])


def with_data(folder: Path, computed_data: Path, *overrides: str) -> Config:
    config = small_config(folder, *overrides)
    shutil.copytree(computed_data, Path(config.runtime.store) / "artifacts")
    return config


@contextlib.contextmanager
def when_training(config: Config, step: int, act: Callable[[psutil.Process], None]) -> Iterator[threading.Event]:
    """Do something to the training worker once it has passed a step."""
    done = threading.Event()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for metrics in Path(config.runtime.store).glob("work/train-*/output/metrics.jsonl"):
                lines = metrics.read_text(encoding="utf-8").splitlines()
                for process in workers_in(metrics.parents[1]) if len(lines) >= step else []:
                    act(process)
                    done.set()
                    return
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield done
    finally:
        over.set()
        watcher.join()


def steps_logged(artifact: Artifact) -> list[int]:
    """Return the steps with metrics, in the order of the lines."""
    lines = (Path(artifact.path) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record["step"] for record in map(json.loads, lines) if record["metrics"]]
