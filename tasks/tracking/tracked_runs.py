"""Runs of the main flow as MLflow has them: found by the names and ids that people use, and read for comparing."""

import contextlib
import difflib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from mlflow.entities import Run as TrackedRun
from mlflow.exceptions import MlflowException

from minillm.errors import StageError
from minillm.evaluation.uncertainty import prompt_scores
from minillm.nearest import suggestion
from minillm.reporting.comparing.runs import Run
from minillm.reporting.plots import CURVES
from tasks.tracking.client import answering, connect, run_page, search_runs
from tasks.tracking.contents import prefect_page, short_digest
from tasks.tracking.database import DATABASE
from tasks.tracking.tags import CACHED_TAG, COMPARED_TAG, KEY_TAG, PARENT_TAG, SCORES, SCORES_FOLDER

FLOW_TAG = "prefect.flow_run_id"
OF_FLOWS = f"tags.`{FLOW_TAG}` IS NOT NULL AND tags.`{PARENT_TAG}` IS NULL AND tags.{COMPARED_TAG} IS NULL"
CODE_CHARACTERS = 12
NEAR = 3
"""Most names shown that are near an unknown one."""


class TrackedRuns:
    """Runs of a tracking server, or of the database in a store.

    Raises:
        StageError: There is no database, or the server does not answer. Every method may raise it.
    """

    def __init__(self, store: Path) -> None:
        if not os.environ.get("MLFLOW_TRACKING_URI") and not (store / DATABASE).exists():
            raise StageError(
                f"there are no tracked runs in {store}: it has no mlflow.db; give the runtime.store of the runs, or "
                "set MLFLOW_TRACKING_URI to the server that has them"
            )
        self._store = store
        with answering():
            self.client = connect(store)
            self._names = {found.experiment_id: found.name for found in self.client.search_experiments()}

    def of_flows(self, experiment: str | None = None) -> list[TrackedRun]:
        """Return the runs of whole flows, the newest first, in one experiment or in all.

        Raises:
            StageError: There is no such experiment.
        """
        if experiment is not None and experiment not in self._names.values():
            raise StageError(f"there is no experiment {experiment!r}; {suggestion(experiment, self._names.values())}")
        chosen = [identity for identity, name in self._names.items() if experiment in (None, name)]
        with answering():
            return self._search(chosen, OF_FLOWS, newest_first=True)

    def find(self, words: str, runs: Sequence[TrackedRun]) -> TrackedRun:
        """Return the run that a person means.

        Args:
            words: Name of the run or of its flow run, id of either or the beginning of one, or id of a stage's run.
            runs: Runs to choose from (see `of_flows`).

        Raises:
            StageError: The words fit no run, or several.
        """
        found = (
            [run for run in runs if words in (*_ids(run), run.info.run_name, self.short_name(run))]
            or [run for run in runs if any(identity.startswith(words) for identity in _ids(run))]
            or [run for parent in self._enclosing(words) for run in runs if run.info.run_id == parent]
        )
        if len(found) == 1:
            return found[0]
        if found:
            meant = ", ".join(f"{run.info.run_name} ({run.info.run_id})" for run in found)
            raise StageError(f"{words!r} is not one run but {len(found)}: {meant}; give the id of the one you mean")
        names = [name for run in runs for name in (self.short_name(run), *_ids(run))]
        near = difflib.get_close_matches(words, names, n=NEAR, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`minillm compare` lists the latest"
        raise StageError(f"there is no run {words!r} among {len(runs)} tracked ones; {hint}")

    def short_name(self, run: TrackedRun) -> str:
        """Return a run's name without its experiment's: that of the flow run, unless somebody has renamed it."""
        return str(run.info.run_name).removeprefix(f"{self._names[run.info.experiment_id]} ")

    def experiment(self, run: TrackedRun) -> str:
        """Return the name of a run's experiment."""
        return self._names[run.info.experiment_id]

    def labels(self, runs: Sequence[TrackedRun]) -> list[str]:
        """Return a name for each run that no other of them has."""
        short = [self.short_name(run) for run in runs]
        return [
            name if short.count(name) == 1 else f"{name} {run.info.run_id[:8]}"
            for name, run in zip(short, runs, strict=True)
        ]

    def read(self, run: TrackedRun, label: str, metric: str = "score", with_curves: bool = True) -> Run:
        """Read everything about a run that comparisons use.

        Args:
            run: The run, as `find` returns it.
            label: Name of the run in the comparison.
            metric: Metric of the scores: rouge_l, exact_match, or `score` for each benchmark's own.
            with_curves: Whether to read the curves of trainings, which takes longest.
        """
        identity, info = run.info.run_id, run.info
        with answering():
            stages = self._search([info.experiment_id], f"tags.`{PARENT_TAG}` = '{identity}'")
            trainings = [stage for stage in stages if with_curves and _is(stage, "train")]
            return Run(
                label=label,
                identity=identity,
                experiment=self.experiment(run),
                experiment_id=info.experiment_id,
                page=run_page(self._store, info.experiment_id, identity),
                flow_page=prefect_page("flow-run", run.data.tags[FLOW_TAG]),
                status=info.status,
                started=info.start_time / 1000,
                params=run.data.params,
                data=_data(run, stages),
                code=_code(stages),
                metrics=run.data.metrics,
                scores=self._scores(identity, metric),
                curves={stage.data.params["role"]: self._curves(stage) for stage in trainings},
            )

    def _search(self, experiments: Sequence[str], query: str, newest_first: bool = False) -> list[TrackedRun]:
        order = f"attributes.start_time {'DESC' if newest_first else 'ASC'}"
        return search_runs(self.client, experiments, query, [order])

    def _enclosing(self, identity: str) -> list[str]:
        """Return the id of the run around a stage's run, in a list that is empty if there is no such run."""
        with contextlib.suppress(MlflowException, KeyError):
            return [self.client.get_run(identity).data.tags[PARENT_TAG]]
        return []

    def _scores(self, identity: str, metric: str) -> dict[str, dict[str, pd.Series]]:
        folders = [file.path for file in self.client.list_artifacts(identity, SCORES_FOLDER)]
        scores = {}
        for folder in sorted(folders, key=lambda path: (Path(path).name != "teacher", path)):
            with tempfile.TemporaryDirectory() as here:
                path = self.client.download_artifacts(identity, f"{folder}/{SCORES}", here)
                scores[Path(folder).name] = prompt_scores(pd.read_parquet(path), metric)
        return scores

    def _curves(self, stage: TrackedRun) -> dict[str, pd.Series]:
        """Read the curves of a training. If its model was found in the store, they are on the run that trained it."""
        if stage.data.tags.get(CACHED_TAG) == "true":
            key = stage.data.tags[KEY_TAG]
            query = f"tags.`{KEY_TAG}` = '{key}' AND tags.{CACHED_TAG} = 'false'"
            stage = next(iter(self._search(list(self._names), query)), stage)
        points = {
            name: {point.step: point.value for point in self.client.get_metric_history(stage.info.run_id, name)}
            for name in CURVES
            if name in stage.data.metrics
        }
        return {name: pd.Series(values).sort_index() for name, values in points.items()}


def _ids(run: TrackedRun) -> tuple[str, str]:
    """Return the ids of a run in MLflow and in Prefect."""
    return run.info.run_id, run.data.tags[FLOW_TAG]


def _is(stage: TrackedRun, kind: str) -> bool:
    return stage.data.tags.get("stage") == kind


def _data(run: TrackedRun, stages: Sequence[TrackedRun]) -> dict[str, str]:
    """Return the digests of the data sets, and of the models that were not made in the run."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    models = {
        f"model of the {role}": short_digest(stage.data.tags[f"input.{role}"])
        for stage in stages
        if _is(stage, "prepare")
        for role in ("teacher", "student")
        if f"input.{role}" in stage.data.tags
    }
    return {entry.dataset.name: entry.dataset.digest for entry in inputs} | models


def _code(stages: Sequence[TrackedRun]) -> Mapping[str, str]:
    """Return the versions of libraries, all of them if stages used different ones, and the code's digest by stage."""
    versions: dict[str, set[str]] = {}
    code = {}
    for stage in stages:
        for tag, value in stage.data.tags.items():
            if tag.startswith("version."):
                versions.setdefault(tag.removeprefix("version."), set()).add(value)
        if "code" in stage.data.tags:
            code[f"code of {stage.data.tags['stage']}"] = stage.data.tags["code"][:CODE_CHARACTERS]
    return {library: ", ".join(sorted(several)) for library, several in versions.items()} | code
