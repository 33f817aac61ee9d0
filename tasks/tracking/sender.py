"""Bringing MLflow up to date with a record of the outbox: with explicit run ids, so from any thread."""

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException

from minillm.store.artifacts import CLOCKED
from minillm.worker.progress import read_lines
from tasks.tracking.client import connect, logged_in, run_page
from tasks.tracking.database import FILES
from tasks.tracking.outbox import DeletedError, Outbox, RefusedError, UnsentError
from tasks.tracking.records import DatasetFacts, Record, Wanted, server_in_use
from tasks.tracking.registry import register
from tasks.tracking.tags import CACHED_TAG, KEY_TAG, PARENT_TAG, RECORD_TAG

BATCH = 100
"""Params, tags or metrics per request; MLflow takes at most 100 params."""
FINAL_ANSWERS = (400, 404, 409, 413, 422)
"""HTTP statuses that sending again would not change."""
News = tuple[str, str, Any]
"""Kind, name and value of something that the server does not know yet."""


class Sender:
    """A connection to one tracking server, or to the database in the store.

    Raises:
        RefusedError: MLflow can use no such server.
        LoginError: It wants a login.
        MlflowException: It does not answer.
    """

    def __init__(self, store: Path) -> None:
        self._artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (store / FILES).as_uri()
        self._store = store
        try:
            with logged_in():
                self.client = connect(store)
        except MlflowException as error:
            if _is_final(error):
                raise RefusedError(f"{server_in_use()} is no place for tracked runs: {error.message}") from error
            raise
        self._experiments: dict[str, str] = {}

    @logged_in()
    def send(self, outbox: Outbox, record: Record, wanted: Wanted) -> None:
        """Send what the server does not know yet.

        Raises:
            RefusedError: The server will never take it.
            DeletedError: A person has deleted its run.
            UnsentError: This record could not be sent, though the server answers.
            LoginError: The server wants a login.
            MlflowException: The server does not answer.
        """
        try:
            run_id = record.sent.run_id or self._find_or_create(outbox, record, wanted)
            self._describe(outbox, record, wanted, run_id)
            self._follow(outbox, record, wanted, run_id)
            self._register(outbox, record, wanted, run_id)
            self._set_status(outbox, record, wanted, run_id)
        except (RefusedError, DeletedError):
            raise
        except Exception as error:  # of the server, of a file to be sent, of a text that cannot be
            if _is_final(error):
                self._require_run(record.sent.run_id)
                raise RefusedError(str(error)) from error
            if self._answers():
                raise UnsentError(str(error) or type(error).__name__) from error
            raise

    def _answers(self) -> bool:
        """Whether the server answers at all."""
        with contextlib.suppress(MlflowException):
            self.client.search_experiments(max_results=1)
            return True
        return False

    def _require_run(self, run_id: str | None) -> None:
        """Look whether a run is still there, of which the server just refused something.

        Raises:
            DeletedError: A person has deleted it.
            RefusedError: Its whole experiment was deleted, or the server does not know it.
        """
        if run_id is None:
            return
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if _is_final(error):
                raise RefusedError(f"it knows no run {run_id}: it is another server, or the run is gone") from error
            raise
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            self._require_experiment(self.client.get_experiment(run.info.experiment_id))
            raise DeletedError

    def _require_experiment(self, found: Experiment) -> None:
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise RefusedError(
                f"the experiment {found.name!r} was deleted there; restore it in MLflow (`mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`) or give the configuration another `name`"
            )

    def _find_or_create(self, outbox: Outbox, record: Record, wanted: Wanted) -> str:
        experiment = self._experiment(wanted.experiment)
        run_id = self._find(experiment, RECORD_TAG, record.id)
        created = run_id is None
        if run_id is None:
            tags = {RECORD_TAG: record.id}
            if wanted.parent is not None:
                parent = outbox.sent(wanted.parent).run_id or self._find(experiment, RECORD_TAG, wanted.parent)
                tags |= {PARENT_TAG: parent} if parent else {}
            run_id = self.client.create_run(experiment, _milliseconds(wanted.started), tags, wanted.name).info.run_id
        outbox.place(record, run_id, run_page(self._store, experiment, run_id), created)
        return run_id

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                self._require_experiment(found)
            self._experiments[name] = self._create(name) if found is None else found.experiment_id
        return self._experiments[name]

    def _create(self, name: str) -> str:
        """A new experiment; of several flow runs that start at once, the first one makes it."""
        try:
            return self.client.create_experiment(name, self._artifacts)
        except MlflowException:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def _find(self, experiment: str, tag: str, value: str, more: str = "") -> str | None:
        runs = self.client.search_runs([experiment], f"tags.`{tag}` = '{value}'{more}", max_results=1)
        return runs[0].info.run_id if runs else None

    def _describe(self, outbox: Outbox, record: Record, wanted: Wanted, run_id: str) -> None:
        """Tags, params and results, then datasets and files; each is sent when new or changed."""
        tags, params, results = dict(wanted.tags), wanted.params, wanted.metrics
        if wanted.cached_key is not None:
            experiment = self._experiment(wanted.experiment)
            computed = self._find(experiment, KEY_TAG, wanted.cached_key, f" AND tags.`{CACHED_TAG}` = 'false'")
            if computed == run_id:  # a flow run that is run again finds what it computed itself
                tags[CACHED_TAG] = "false"
            elif computed is not None:
                tags["computed_by"] = computed
        if record.sent.uncertain:
            known = self.client.get_run(run_id).data
            self._catch_up(outbox, record, run_id, list(known.metrics))
            params = {name: value for name, value in params.items() if name not in known.params}
            results = {name: value for name, value in results.items() if known.metrics.get(name) != value}
        news = [*_news(record, "tag", tags), *_news(record, "param", params), *_news(record, "result", results)]

        def log(part: Sequence[News]) -> None:
            self.client.log_batch(
                run_id,
                metrics=[Metric(n, v, _milliseconds(time.time()), 0) for kind, n, v in part if kind == "result"],
                params=[Param(name, value) for kind, name, value in part if kind == "param"],
                tags=[RunTag(name, value) for kind, name, value in part if kind == "tag"],
            )

        for start in range(0, len(news), BATCH):
            self._log(outbox, record, run_id, news[start : start + BATCH], log)
        inputs = _news(record, "dataset", {facts.name: facts for facts in wanted.datasets})
        self._log(
            outbox,
            record,
            run_id,
            inputs,
            lambda part: self.client.log_inputs(run_id, [_dataset_input(facts) for _, _, facts in part]),
        )
        versions = {path: Path(path).stat().st_mtime_ns for path in wanted.files if Path(path).exists()}
        for news_of_file in _news(record, "file", versions):
            path = news_of_file[1]
            folder = wanted.files[path] or None
            send = functools.partial(self.client.log_artifact, run_id, path, folder)
            self._log(outbox, record, run_id, [news_of_file], lambda _, send=send: send())

    def _log(
        self, outbox: Outbox, record: Record, run_id: str, part: Sequence[News], log: Callable[[Sequence[News]], Any]
    ) -> None:
        """Send what goes in one request; where that is refused, its halves, down to what the server does not take.

        Args:
            outbox: Notes what was taken and what was refused.
            record: Whose.
            run_id: Of its run.
            part: What to send.
            log: Sends it.
        """
        part = [news for news in part if _called(news) not in record.sent.refused]
        if not part:
            return
        _expect(outbox, record)
        try:
            log(part)
        except MlflowException as error:
            if not _is_final(error):
                raise
            self._require_run(run_id)
            with outbox.progress(record) as sent:
                sent.uncertain = False
            if len(part) == 1:
                outbox.refuse(record, _called(part[0]), error.message)
                return
            middle = len(part) // 2
            for half in (part[:middle], part[middle:]):
                self._log(outbox, record, run_id, half, log)
            return
        _confirm(outbox, record, part)

    def _catch_up(self, outbox: Outbox, record: Record, run_id: str, names: list[str]) -> None:
        """Learn from the server which points of an earlier attempt it has."""
        steps = {name: max(point.step for point in self.client.get_metric_history(run_id, name)) for name in names}
        with outbox.progress(record) as sent:
            sent.last_step = {**sent.last_step, **steps}
            sent.uncertain = False

    def _follow(self, outbox: Outbox, record: Record, wanted: Wanted, run_id: str) -> None:
        """Points that were added to metrics.jsonl and to system_metrics.jsonl beside it."""
        if wanted.live is None:
            return
        for path in (Path(wanted.live).with_name(name) for name in CLOCKED):
            if path.exists():
                self._follow_file(outbox, record, path, run_id)

    def _follow_file(self, outbox: Outbox, record: Record, path: Path, run_id: str) -> None:
        before = record.sent.offsets.get(path.name, 0)
        points, offset = _new_points(path, before, record.sent.last_step)
        for start in range(0, len(points), BATCH):
            part = [("metric", point.key, point) for point in points[start : start + BATCH]]
            self._log(
                outbox, record, run_id, part, lambda part: self.client.log_batch(run_id, metrics=[p for *_, p in part])
            )
        if offset != before:
            with outbox.progress(record) as sent:
                sent.offsets[path.name] = offset

    def _register(self, outbox: Outbox, record: Record, wanted: Wanted, run_id: str) -> None:
        """The run's models, when there are no more to come."""
        news = _news(record, "model", {facts.name: facts for facts in wanted.models})
        if wanted.status == "RUNNING" or not news:
            return
        with FileLock(self._store / "locks" / "registry.lock"):
            self._log(
                outbox,
                record,
                run_id,
                news,
                lambda part: register(self.client, wanted.experiment, [facts for *_, facts in part], run_id),
            )

    def _set_status(self, outbox: Outbox, record: Record, wanted: Wanted, run_id: str) -> None:
        if wanted.status == record.sent.status:
            return
        if wanted.status == "RUNNING":
            self.client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        else:
            self.client.set_terminated(run_id, wanted.status, _milliseconds(wanted.ended or time.time()))
        with outbox.progress(record) as sent:
            sent.status = wanted.status


def _new_points(path: Path, offset: int, last_step: dict[str, int]) -> tuple[list[Metric], int]:
    """Points behind a byte offset that are later than the last step known, and the offset of what is still unread."""
    if path.stat().st_size < offset:  # begun anew
        offset = 0
    lines, end = read_lines(path, offset)
    latest = dict(last_step)
    points = []
    for line in lines:
        for name, value in line.metrics.items():
            if line.step > latest.get(name, -1):
                latest[name] = line.step
                points.append(Metric(name, value, _milliseconds(line.time), line.step))
    return points, end


def _dataset_input(facts: DatasetFacts) -> DatasetInput:
    dataset = Dataset(facts.name, facts.digest, facts.source_type, facts.source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", facts.context)])


def _news(record: Record, kind: str, values: Mapping[str, Any]) -> list[News]:
    """What is not confirmed yet."""
    done = set(record.sent.done)
    return [(kind, name, value) for name, value in values.items() if _mark(kind, name, value) not in done]


def _expect(outbox: Outbox, record: Record) -> None:
    """Note that a sending begins whose end may not be seen."""
    with outbox.progress(record) as sent:
        sent.uncertain = True


def _confirm(outbox: Outbox, record: Record, part: Sequence[News]) -> None:
    with outbox.progress(record) as sent:
        sent.done += [_mark(*news) for news in part if news[0] != "metric"]
        sent.last_step |= {name: point.step for kind, name, point in part if kind == "metric"}
        sent.uncertain = False


def _called(news: News) -> str:
    return f"{news[0]} {news[1]}"


def _is_final(error: Exception) -> bool:
    """Whether sending again would change nothing."""
    return isinstance(error, MlflowException) and error.get_http_status_code() in FINAL_ANSWERS


def _mark(kind: str, name: str, value: object) -> str:
    return hashlib.sha256(f"{kind} {name} {value}".encode()).hexdigest()[:16]


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
