"""Comparing two small runs from the command line; they differ in a learning rate and in a row of data."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from minillm.errors import StageError
from minillm.evaluation.uncertainty import adjusted, paired_estimate
from minillm.reporting.comparing.page import difference_tables
from minillm.reporting.comparing.runs import RunComparison, differing
from tasks.comparing import chosen_runs
from tasks.tracking.tracked_runs import TrackedRuns
from tests.conftest import ROOT
from tests.flows.test_distill import distill
from tests.small import write_rows, write_short_experiment

pytestmark = pytest.mark.long

OVERRIDE = "methods.minillm.training.learning_rate=0.1"


@dataclass
class Pair:
    """Two finished runs."""

    store: Path
    first: Run
    later: Run

    @property
    def names(self) -> list[str]:
        return [str(run.info.run_name).removeprefix("small ") for run in (self.first, self.later)]


def compare(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flows.compare` in an interpreter of its own."""
    command = [sys.executable, "-m", "flows.compare", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def server(prefect_server: None) -> str:
    return str(PREFECT_API_URL.value())


@pytest.fixture(scope="module")
def pair(server: str, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("compare")
    path = write_short_experiment(folder, ("sft", "minillm"))
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["evaluation"]["benchmarks"]["colours"] = {"source": {"path": "colours.jsonl"}}
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    rows = [{"instruction": f"Name colour {n}.", "output": f"It is the {n}th colour."} for n in range(5)]
    for arguments, known in (([], rows[:4]), (["--set", OVERRIDE], rows)):
        write_rows(folder / "colours.jsonl", known)
        done = distill(path, *arguments, PREFECT_API_URL=server)
        assert done.status == 0, done.log
    later, first = TrackedRuns(folder / "store").of_flows()
    return Pair(folder / "store", first, later)


@pytest.fixture(scope="module")
def compared(pair: Pair, server: str) -> str:
    """Compare the two runs; return what the console shows."""
    done = compare(*pair.names, "--store", pair.store, PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(pair: Pair) -> RunComparison:
    tracked = TrackedRuns(pair.store)
    return RunComparison([tracked.read(pair.first, "first"), tracked.read(pair.later, "later")])


def test_exactly_what_was_changed_differs(pair: Pair):
    runs = read(pair).runs
    assert differing({run.label: run.params for run in runs}).to_dict("index") == {
        "methods.minillm.training.learning_rate": {"first": "0.001", "later": "0.1"}
    }
    assert list(differing({run.label: run.data for run in runs}).index) == ["benchmark/colours"]
    assert differing({run.label: run.code for run in runs}).empty
    assert {"torch", "code of train", "code of score"} <= set(runs[0].code)


def test_p_values_are_those_of_the_scores_in_the_store(pair: Pair):
    client = MlflowClient(f"sqlite:///{pair.store / 'mlflow.db'}")
    values = []
    for run in (pair.later, pair.first):
        nested = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        (scored,) = [stage for stage in nested if stage.info.run_name == "score minillm"]
        scores = pd.read_parquet(Path(scored.data.tags["artifact"]) / "scores.parquet")
        by_prompt = scores.query("benchmark == 'dolly'").pivot_table(values="rouge_l", index="index")
        values.append(100 * by_prompt["rouge_l"].to_numpy(dtype=float))
    direct = paired_estimate([values[0] - values[1]])
    found = read(pair).differences["later:minillm", "first:minillm", "dolly"]
    assert found.value == pytest.approx(direct.value)
    assert (found.low, found.high) == (pytest.approx(direct.low), pytest.approx(direct.high))
    assert direct.p_value is not None
    assert found.p_value == pytest.approx(adjusted([direct.p_value] * 2, "ss")[0]), "dolly, and the mean over it"


def test_the_benchmark_with_another_row_is_not_paired(pair: Pair, compared: str):
    (table,) = difference_tables(read(pair)).values()
    assert table.loc["colours", ""] == "not paired: its data are not the same"
    assert re.search(r"^\| colours +\| +– \| +– \| +– \| +not paired", compared, re.MULTILINE)


def test_the_console_has_scores_differences_and_what_was_changed(pair: Pair, compared: str):
    first, later = pair.names
    for name in (first, later):
        assert re.search(rf"^\| {name}:minillm +\| +\d+\.\d \[", compared, re.MULTILINE)
    assert f"### {later}:minillm minus {first}:minillm" in compared
    assert re.search(
        r"^\| methods\.minillm\.training\.learning_rate +\| +0\.001 +\| +0\.1 +\|$", compared, re.MULTILINE
    )
    assert "![" not in compared
    (path,) = re.findall(r"^comparison +(\S+)$", compared, re.MULTILINE)
    page = Path(path).read_text(encoding="utf-8")
    assert page.count("<svg") >= 4, "scores and curves"
    assert f">{first}:minillm</text>" in page
    assert not list(Path(path).parents[1].glob("*.tmp"))


def test_mlflow_has_the_comparison_as_a_run_of_its_own(pair: Pair, compared: str):
    client = MlflowClient(f"sqlite:///{pair.store / 'mlflow.db'}")
    (run,) = client.search_runs([pair.first.info.experiment_id], "tags.compared IS NOT NULL")
    assert run.info.run_name == f"compare {' '.join(pair.names)}"
    assert run.info.status == "FINISHED"
    assert run.data.tags["compared"] == f"{pair.first.info.run_id},{pair.later.info.run_id}"
    assert {"compare.html", "compare.md", "plots"} == {file.path for file in client.list_artifacts(run.info.run_id)}
    (url,) = re.findall(r"^MLflow +(\S+)$", compared, re.MULTILINE)
    assert f"/runs/{run.info.run_id}?workflowType=machine_learning" in url
    assert len(TrackedRuns(pair.store).of_flows()) == 2, "it is none of the runs to compare"


def test_prefect_shows_it_with_links(pair: Pair, compared: str):
    with get_client(sync_client=True) as client:
        shown = {artifact.key: str(artifact.data) for artifact in client.read_artifacts()}
    text = shown["-".join(["compare", *pair.names])]
    assert "not paired" in text
    assert f"/runs/{pair.first.info.run_id}?workflowType=machine_learning" in text
    assert f"/runs/flow-run/{pair.later.data.tags['prefect.flow_run_id']}" in text


def test_all_methods_of_a_run_and_itself_differ_in_nothing(pair: Pair, server: str):
    done = compare(pair.first.info.run_id, pair.names[1], "--methods", "--store", pair.store, PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    for method in ("teacher", "sft", "minillm"):
        assert f"### {pair.names[1]}:{method} minus {pair.names[0]}:{method}" in done.stdout
    sft = done.stdout.split("sft minus")[1].split("###")[0]
    assert re.search(r"^\| dolly +\| \+0\.0 \[\+0\.0, \+0\.0\] \| +3 \| +1\.000 \| +not disting", sft, re.MULTILINE)


def test_without_a_name_the_runs_are_listed(pair: Pair):
    done = compare("--store", pair.store)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^\| ([\w-]+) +\| (\w{8}) \| small", done.stdout, re.MULTILINE)
    ids = [run.info.run_id[:8] for run in (pair.first, pair.later)]
    assert listed == list(zip(pair.names, ids, strict=True))[::-1]
    assert "minillm compare RUN RUN" in done.stdout


def test_what_cannot_be_compared_is_refused_before_anything_starts(pair: Pair):
    first = pair.names[0]
    refused = compare(first, first[:-1], "--store", pair.store)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"there is no run '{first[:-1]}'")
    assert "server" not in refused.stderr
    for words, message in (([first, pair.first.info.run_id], "are the same run"), ([first], "two runs or more")):
        with pytest.raises(StageError, match=message):
            chosen_runs(words, None, str(pair.store))
