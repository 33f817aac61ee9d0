"""Delivery of one outbox entry to MLflow: the server gets what it does not know yet, and confirms it."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from minillm.store.artifacts import CLOCKED
from minillm.worker.progress import read_lines
from tasks.tracking.client import is_final, milliseconds
from tasks.tracking.entries import DatasetFacts, DesiredRun, OutboxEntry
from tasks.tracking.outbox import Outbox
from tasks.tracking.registry import register
from tasks.tracking.tags import CACHED_TAG, KEY_TAG

if TYPE_CHECKING:
    from tasks.tracking.sender import Sender

BATCH = 100
"""Most params, tags or metrics in a request; MLflow takes 100 params."""
Unsent = tuple[str, str, Any]
"""Kind, name and value of something that the server does not know yet."""


@dataclass
class Delivery:
    """An entry of the outbox, the run that it asks for, and the server that gets it."""

    server: "Sender"
    outbox: Outbox
    """Outbox of the entry, which keeps what the server took and what it refused."""
    entry: OutboxEntry
    desired: DesiredRun
    run_id: str
    """Run of the entry on the server."""

    def send(self) -> None:
        """Send everything that is not confirmed yet."""
        self._describe()
        self._follow()
        self._register()
        self._set_status()

    def _describe(self) -> None:
        """Send tags, params and results, then datasets and files, where they are new or changed."""
        tags, params, results = dict(self.desired.tags), self.desired.params, self.desired.metrics
        if self.desired.cached_key is not None:
            experiment = self.server.experiment(self.desired.experiment)
            computed = self.server.find(
                experiment, KEY_TAG, self.desired.cached_key, f" AND tags.`{CACHED_TAG}` = 'false'"
            )
            if computed == self.run_id:  # a flow run that is run again finds what it computed itself
                tags[CACHED_TAG] = "false"
            elif computed is not None:
                tags["computed_by"] = computed
        if self.entry.delivered.uncertain:
            known = self.server.client.get_run(self.run_id).data
            self._catch_up(list(known.metrics))
            params = {name: value for name, value in params.items() if name not in known.params}
            results = {name: value for name, value in results.items() if known.metrics.get(name) != value}
        news = [*self._unsent("tag", tags), *self._unsent("param", params), *self._unsent("result", results)]

        def log(part: Sequence[Unsent]) -> None:
            self.server.client.log_batch(
                self.run_id,
                metrics=[Metric(n, v, milliseconds(time.time()), 0) for kind, n, v in part if kind == "result"],
                params=[Param(name, value) for kind, name, value in part if kind == "param"],
                tags=[RunTag(name, value) for kind, name, value in part if kind == "tag"],
            )

        def log_file(part: Sequence[Unsent]) -> None:
            ((_, path, _),) = part
            self.server.client.log_artifact(self.run_id, path, self.desired.files[path] or None)

        for start in range(0, len(news), BATCH):
            self._log(news[start : start + BATCH], log)
        inputs = self._unsent("dataset", {facts.name: facts for facts in self.desired.datasets})
        self._log(
            inputs,
            lambda part: self.server.client.log_inputs(self.run_id, [_dataset_input(facts) for _, _, facts in part]),
        )
        versions = {path: Path(path).stat().st_mtime_ns for path in self.desired.files if Path(path).exists()}
        for news_of_file in self._unsent("file", versions):
            self._log([news_of_file], log_file)

    def _log(self, part: Sequence[Unsent], log: Callable[[Sequence[Unsent]], Any]) -> None:
        """Send values in one request. If it is refused, send its halves, down to what the server does not take.

        Args:
            part: Values to send.
            log: Function that sends them.
        """
        part = [news for news in part if _called(news) not in self.entry.delivered.refused]
        if not part:
            return
        with self.outbox.progress(self.entry) as delivered:
            delivered.uncertain = True  # the end of what begins here may not be seen
        try:
            log(part)
        except MlflowException as error:
            if not is_final(error):
                raise
            self.server.require_run(self.run_id)
            with self.outbox.progress(self.entry) as delivered:
                delivered.uncertain = False
            if len(part) == 1:
                self.outbox.refuse(self.entry, _called(part[0]), error.message)
                return
            middle = len(part) // 2
            for half in (part[:middle], part[middle:]):
                self._log(half, log)
            return
        self._confirm(part)

    def _catch_up(self, names: list[str]) -> None:
        """Ask the server which points of an earlier attempt it has."""
        steps = {
            name: max(point.step for point in self.server.client.get_metric_history(self.run_id, name))
            for name in names
        }
        with self.outbox.progress(self.entry) as delivered:
            delivered.last_step = {**delivered.last_step, **steps}
            delivered.uncertain = False

    def _follow(self) -> None:
        """Send the points that were added to metrics.jsonl and to system_metrics.jsonl beside it."""
        live = self.desired.live
        for path in [Path(live).with_name(name) for name in CLOCKED] if live is not None else []:
            if not path.exists():
                continue
            before = self.entry.delivered.offsets.get(path.name, 0)
            points, offset = _new_points(path, before, self.entry.delivered.last_step)
            for start in range(0, len(points), BATCH):
                part = [("metric", point.key, point) for point in points[start : start + BATCH]]
                self._log(part, lambda part: self.server.client.log_batch(self.run_id, metrics=[p for *_, p in part]))
            if offset != before:
                with self.outbox.progress(self.entry) as delivered:
                    delivered.offsets[path.name] = offset

    def _register(self) -> None:
        """Register the run's models once no more will come."""
        news = self._unsent("model", {facts.name: facts for facts in self.desired.models})
        if self.desired.status == "RUNNING" or not news:
            return
        with FileLock(self.server.store / "locks" / "registry.lock"):
            self._log(
                news,
                lambda part: register(
                    self.server.client, self.desired.experiment, [facts for *_, facts in part], self.run_id
                ),
            )

    def _set_status(self) -> None:
        if self.desired.status == self.entry.delivered.status:
            return
        if self.desired.status == "RUNNING":
            self.server.client.update_run(self.run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        else:
            self.server.client.set_terminated(
                self.run_id, self.desired.status, milliseconds(self.desired.ended or time.time())
            )
        with self.outbox.progress(self.entry) as delivered:
            delivered.status = self.desired.status

    def _unsent(self, kind: str, values: Mapping[str, Any]) -> list[Unsent]:
        done = set(self.entry.delivered.done)
        return [(kind, name, value) for name, value in values.items() if _mark(kind, name, value) not in done]

    def _confirm(self, part: Sequence[Unsent]) -> None:
        with self.outbox.progress(self.entry) as delivered:
            delivered.done += [_mark(*news) for news in part if news[0] != "metric"]
            delivered.last_step |= {name: point.step for kind, name, point in part if kind == "metric"}
            delivered.uncertain = False


def _new_points(path: Path, offset: int, last_step: dict[str, int]) -> tuple[list[Metric], int]:
    """Read the points after a byte offset that are later than the last known step; return them and the next offset."""
    if path.stat().st_size < offset:  # begun anew
        offset = 0
    lines, end = read_lines(path, offset)
    latest = dict(last_step)
    points = []
    for line in lines:
        for name, value in line.metrics.items():
            if line.step > latest.get(name, -1):
                latest[name] = line.step
                points.append(Metric(name, value, milliseconds(line.time), line.step))
    return points, end


def _dataset_input(facts: DatasetFacts) -> DatasetInput:
    dataset = Dataset(facts.name, facts.digest, facts.source_type, facts.source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", facts.context)])


def _called(news: Unsent) -> str:
    return f"{news[0]} {news[1]}"


def _mark(kind: str, name: str, value: object) -> str:
    return hashlib.sha256(f"{kind} {name} {value}".encode()).hexdigest()[:16]
