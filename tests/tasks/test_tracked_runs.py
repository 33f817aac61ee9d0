"""Tracked runs in a real MLflow database are found by any name or id that a person has, and read completely."""

import json
import socket
import time
from pathlib import Path

import pandas as pd
import pytest
from mlflow.entities import Run as TrackedRun

from minillm.config import Config
from minillm.errors import StageError
from minillm.store.artifacts import Store
from tasks.tracking import contents
from tasks.tracking.entries import DatasetFacts, DesiredRun
from tasks.tracking.outbox import Outbox
from tasks.tracking.tracked_runs import TrackedRuns
from tests.small import small_config

FLOWS = {"aaaa1111-0000": "brave-fox", "aaaa2222-0000": "calm-owl", "bbbb3333-0000": "calm-owl"}
"""Name of each flow run by its id."""
KEY = "k" * 64


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small_config(tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def store(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Track three flow runs; one is of another experiment and reused what the first had trained."""
    root = Store(config.runtime.store).root
    box = Outbox(root)
    scores = tmp_path_factory.mktemp("scores") / "scores.parquet"
    rows = [("dolly", index, seed, (index + seed) / 100, index > 0) for index in range(4) for seed in (10, 20)]
    pd.DataFrame(rows, columns=["benchmark", "index", "seed", "score", "headline"]).to_parquet(scores)
    elsewhere = config.model_copy(update={"name": "elsewhere"})
    for identity, name in FLOWS.items():
        desired = contents.flow_run(elsewhere if identity.startswith("b") else config, identity, name)
        facts = DatasetFacts(
            name="benchmark/dolly", digest="d1", source_type="local", source="{}", context="evaluation"
        )
        desired.datasets, desired.metrics = [facts], {"rouge_l/minillm/mean": 12.5}
        desired.files = {str(scores): "scores/minillm"}
        box.open(identity, finished(desired))
    live = scores.with_name("metrics.jsonl")
    lines = [
        {"time": 1.0, "step": s, "total": 3, "metrics": {"train/loss": 1 / s, "train/other": 0.0}} for s in (1, 2, 3)
    ]
    live.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    trained = {"minillm.key": KEY, "code": "c" * 64, "version.torch": "2.13.0"}
    for parent, experiment, cached in (("aaaa1111-0000", "small", "false"), ("bbbb3333-0000", "elsewhere", "true")):
        prepare = stage(
            "prepare", experiment, parent, {"input.teacher": "sha256:" + "e" * 64, "version.torch": "2.12.0"}
        )
        train = stage("train", experiment, parent, {**trained, "cached": cached})
        train.live = str(live) if cached == "false" else None
        box.open(f"{parent}-prepare", prepare)
        box.open(f"{parent}-train", train)
    assert box.close()
    return root


def stage(kind: str, experiment: str, parent: str, tags: dict[str, str]) -> DesiredRun:
    desired = DesiredRun(name=f"{kind} minillm", experiment=experiment, parent=parent, started=time.time())
    desired.tags, desired.params = {"stage": kind, **tags}, {"role": "minillm"}
    return finished(desired)


def finished(desired: DesiredRun) -> DesiredRun:
    desired.status, desired.ended = "FINISHED", time.time()
    return desired


@pytest.fixture(scope="module")
def tracked(store: Path) -> TrackedRuns:
    return TrackedRuns(store)


@pytest.fixture(scope="module")
def runs(tracked: TrackedRuns) -> list[TrackedRun]:
    return tracked.of_flows()


@pytest.fixture
def fox(runs: list[TrackedRun]) -> TrackedRun:
    return next(run for run in runs if run.info.run_name == "small brave-fox")


def test_only_runs_of_flows_are_offered_the_newest_first(runs: list[TrackedRun]):
    assert [run.info.run_name for run in runs] == ["elsewhere calm-owl", "small calm-owl", "small brave-fox"]


def test_a_run_is_found_by_whatever_names_it(tracked: TrackedRuns, runs: list[TrackedRun], fox: TrackedRun):
    for words in ("brave-fox", "small brave-fox", "aaaa1111-0000", "aaaa1", fox.info.run_id, fox.info.run_id[:9]):
        assert tracked.find(words, runs).info.run_id == fox.info.run_id, words


def test_a_stages_run_stands_for_the_run_around_it(tracked: TrackedRuns, runs: list[TrackedRun], store: Path):
    (nested,) = tracked._search(["1"], "tags.stage = 'train'")
    assert tracked.find(nested.info.run_id, runs).info.run_name == "small brave-fox"


def test_an_unknown_run_is_named_with_those_near_it(tracked: TrackedRuns, runs: list[TrackedRun]):
    with pytest.raises(StageError, match="no run 'brave-fix' among 3 tracked ones; did you mean brave-fox"):
        tracked.find("brave-fix", runs)
    with pytest.raises(StageError, match=r"no run 'zzzzzz' .* `minillm compare` lists the latest"):
        tracked.find("zzzzzz", runs)


def test_an_ambiguous_name_or_beginning_lists_what_it_may_mean(tracked: TrackedRuns, runs: list[TrackedRun]):
    with pytest.raises(
        StageError, match=r"'calm-owl' is not one run but 2: elsewhere calm-owl \(\w+\), small calm-owl"
    ):
        tracked.find("calm-owl", runs)
    with pytest.raises(StageError, match="'aaaa' is not one run but 2"):
        tracked.find("aaaa", runs)
    assert tracked.find("calm-owl", tracked.of_flows("elsewhere")).info.run_name == "elsewhere calm-owl"


def test_an_unknown_experiment_is_named_with_one_near_it(tracked: TrackedRuns):
    with pytest.raises(StageError, match="no experiment 'smal'; did you mean `small`"):
        tracked.of_flows("smal")


def test_runs_of_one_name_get_labels_that_differ(tracked: TrackedRuns, runs: list[TrackedRun]):
    owl, other, _ = (run.info.run_id[:8] for run in runs)
    assert tracked.labels(runs) == [f"calm-owl {owl}", f"calm-owl {other}", "brave-fox"]


def test_what_is_compared_is_read(tracked: TrackedRuns, fox: TrackedRun):
    run = tracked.read(fox, "brave-fox")
    assert run.params["methods.minillm.policy.teacher_mix"] == "0.2"
    assert run.data == {"benchmark/dolly": "d1", "model of the teacher": "e" * 36}
    assert run.code == {"torch": "2.12.0, 2.13.0", "code of train": "c" * 12}
    # headline prompts 1, 2, 3; the mean over the seeds 10 and 20 is (index + 15) / 100
    assert run.scores["minillm"]["dolly"].to_dict() == pytest.approx({1: 16.0, 2: 17.0, 3: 18.0})
    assert run.curves["minillm"].keys() == {"train/loss"}
    assert run.curves["minillm"]["train/loss"].to_dict() == pytest.approx({1: 1.0, 2: 1 / 2, 3: 1 / 3})
    assert run.page.endswith(f"/runs/{fox.info.run_id}?workflowType=machine_learning")
    assert run.flow_page.endswith("/runs/flow-run/aaaa1111-0000")


def test_the_curve_of_a_model_found_in_the_store_is_that_of_the_run_that_trained_it(
    tracked: TrackedRuns, runs: list[TrackedRun]
):
    found = tracked.read(runs[0], "calm-owl")
    assert found.experiment == "elsewhere"
    assert list(found.curves["minillm"]["train/loss"].index) == [1, 2, 3]


def test_a_folder_without_tracked_runs_is_refused_and_stays_as_it_is(tmp_path: Path):
    with pytest.raises(StageError, match=r"no tracked runs in .*runtime\.store.*MLFLOW_TRACKING_URI"):
        TrackedRuns(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_an_error_to_mend(store: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StageError, match=rf"MLflow \({address}\) cannot be read"):
        TrackedRuns(store)
