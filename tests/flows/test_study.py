"""A study from the command line: shared stages are computed once, a failed run leaves the others, Ctrl-C works."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL

from tests.conftest import ROOT
from tests.flows.test_distill import Finished, run_flow
from tests.small import write_short_experiment
from tests.workers import is_worker

RATE = "methods.minillm.training.learning_rate"
LONG = ("methods.minillm.training.steps=300", "methods.minillm.training.evaluate_every=300")
SHARED = ("prepare tokenizer", "read benchmarks", "encode prompts", "filter examples", "pack plain text")
SHARED += ("fine-tune teacher", "fine-tune initial", "generate teacher", "score teacher", "diversity teacher")
OWN = ("train minillm", "generate minillm", "score minillm", "diversity minillm", "export minillm")
OWN += ("generation cost", "report")


@pytest.fixture(scope="module")
def server(prefect_server: None) -> str:
    return str(PREFECT_API_URL.value())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a study of three variants: a short one, one that trains for a while, and one whose training fails."""
    folder = tmp_path_factory.mktemp("study")
    base = write_short_experiment(folder, ("sft", "minillm"))
    study = {
        "name": "rates",
        "base": str(base),
        "variants": {"whole": [], "fast": [f"{RATE}=0.1", *LONG], "broken": [f"{RATE}=1e30"]},
        "baseline": "whole",
        "parallel_runs": 2,
        "runtime": {"parallel_stages": 1, "checkpoint_every": 5},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


@dataclass
class Interrupted:
    """State of the study after Ctrl-C."""

    status: int
    seconds: float
    """Seconds from Ctrl-C until no worker was left."""
    log: str
    tracked: str
    """Status of the interrupted run in MLflow."""
    checkpoints: int


@pytest.fixture(scope="module")
def interrupted(config: Path, server: str) -> Interrupted:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.study", str(config)],
        cwd=ROOT,
        env=os.environ | {"PREFECT_API_URL": server},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    store = config.parent / "store"
    workers = workers_in_training(store, process)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < sent + 60:
        time.sleep(0.05)
    seconds = time.monotonic() - sent
    log, _ = process.communicate(timeout=120)
    checkpoints = len(list(store.glob("work/train-*/checkpoints/step-*/checkpoint.json")))
    tracked = parents(config)["rates fast, seed 1"].info.status
    return Interrupted(process.returncode, seconds, log, tracked, checkpoints)


@pytest.fixture(scope="module")
def continued(config: Path, interrupted: Interrupted, server: str) -> Finished:
    """Run the same command again."""
    return run_flow("study", config, str(config), PREFECT_API_URL=server)


def workers_in_training(store: Path, process: subprocess.Popen[str]) -> list[int]:
    """Wait until a worker has trained for a while; return the process ids of all workers."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        logs = [
            path.read_text(encoding="utf-8").splitlines() for path in store.glob("work/train-*/output/metrics.jsonl")
        ]
        if any(len(lines) >= 8 for lines in logs):
            children = psutil.Process(process.pid).children(recursive=True)
            return [child.pid for child in children if is_worker(child)]
        time.sleep(0.05)
    raise AssertionError("no worker trained in time")


def computed(log: str) -> dict[str, int]:
    """Return how often each stage was computed and not found in the store."""
    names = re.findall(r"\d\d:\d\d:\d\d  ([^:\n]+): Finished in state Completed\(", log)
    return {name: names.count(name) for name in names}


def parents(config: Path) -> dict[str, Run]:
    """Return the tracked runs without a parent by name, the newest of each name."""
    client = MlflowClient(f"sqlite:///{config.parent / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rates")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attribute.start_time ASC"])
    return {str(run.info.run_name): run for run in runs if "mlflow.parentRunId" not in run.data.tags}


@pytest.mark.long
def test_ctrl_c_stops_the_workers_of_runs_within_seconds(interrupted: Interrupted):
    assert interrupted.seconds < 10
    assert interrupted.status != 0
    assert interrupted.tracked == "KILLED"
    assert interrupted.checkpoints > 0
    after = interrupted.log.split("stopping: the flow was cancelled")[1]
    assert ": started" not in after
    assert "broken, seed 1" not in interrupted.log, "it had no place yet"


@pytest.mark.long
def test_the_same_command_goes_on_and_nothing_is_computed_twice(interrupted: Interrupted, continued: Finished):
    before, after = computed(interrupted.log), computed(continued.log)
    assert {name: before.get(name, 0) + after.get(name, 0) for name in SHARED} == dict.fromkeys(SHARED, 1)
    assert {name: before.get(name, 0) + after.get(name, 0) for name in OWN} == dict.fromkeys(OWN, 2)
    assert re.search(r"train minillm: continuing from the checkpoint of step", continued.log)
    assert not {"train sft", "generate sft"} & set(continued.states())


@pytest.mark.long
def test_a_run_that_fails_leaves_the_others_and_is_named(continued: Finished):
    assert continued.status == 1
    assert re.search(r"study: Finished in state Failed.*not all runs ended well", continued.log)
    assert re.search(r"broken, seed 1: not all stages were computed.*train minillm: .*not finite", continued.log)
    assert "Left out, because runs failed: broken, seed 1" in continued.output
    rows = re.findall(r"^\| \**(whole|fast|broken)\** ", continued.output, re.MULTILINE)
    assert rows == ["whole", "fast", "fast", "whole", "fast"], "scores, the difference, and what is beside them"
    (place,) = re.findall(r"^study +(\S+)$", continued.output, re.MULTILINE)
    assert Path(place).read_text(encoding="utf-8").count("<svg") >= 3, "differences and curves"


@pytest.mark.long
def test_each_run_is_a_flow_run_of_the_main_flow_in_prefect(continued: Finished):
    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        runs = [run for run in client.read_flow_runs() if run.name == "fast, seed 1"]
        of_study = ArtifactFilter(key=ArtifactFilterKey(any_=["study-rates"]))
        (shown,) = client.read_artifacts(artifact_filter=of_study)
    assert {flows[run.flow_id] for run in runs} == {"distill"}
    assert all(run.parent_task_run_id is not None for run in runs)
    ends = [run.state_type.name for run in sorted(runs, key=lambda run: str(run.start_time)) if run.state_type]
    assert ends == ["CANCELLED", "COMPLETED"], "interrupted, continued"
    assert "| fast" in str(shown.data)
    assert "whole, seed 1: [MLflow](" in str(shown.data)


@pytest.mark.long
def test_mlflow_has_the_study_with_links_to_its_runs(config: Path, continued: Finished):
    runs = parents(config)
    (study,) = [run for run in runs.values() if "compared" in run.data.tags]
    assert study.info.status == "FAILED", "for the broken one"
    for name in ("whole", "fast"):
        run = runs[f"rates {name}, seed 1"]
        assert run.info.status == "FINISHED"
        assert run.info.run_id in study.data.tags["compared"]
        assert f"/runs/{run.info.run_id}" in study.data.tags["mlflow.note.content"]
    whole, fast = (runs[f"rates {name}, seed 1"].data.metrics["rouge_l/minillm/mean"] for name in ("whole", "fast"))
    assert study.data.metrics["score/whole/mean"] == pytest.approx(whole)
    assert study.data.metrics["difference/fast/mean"] == pytest.approx(fast - whole)
    assert study.data.params["baseline"] == "whole"
    client = MlflowClient(f"sqlite:///{config.parent / 'store' / 'mlflow.db'}")
    assert {"study.html", "results.csv"} <= {file.path for file in client.list_artifacts(study.info.run_id)}


def test_a_study_that_cannot_run_is_refused_before_anything_starts(config: Path):
    refused = run_flow("study", config, str(config), "--set", "variants.fast=[methods.minillm.steps=1]")
    assert refused.status == 2
    assert "variant 'fast' (methods.minillm.steps=1)" in refused.log
    assert "server" not in refused.log


def test_help_names_the_options():
    done = subprocess.run(
        [sys.executable, "-m", "flows.study", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--set KEY=VALUE" in done.stdout
