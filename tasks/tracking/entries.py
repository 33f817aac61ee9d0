"""Entries of the outbox: what a tracked run should look like, and how much of it MLflow already has."""

import logging
import os

from pydantic import BaseModel

from minillm.redaction import redacted
from tasks.tracking.tags import KEY_TAG

LOGGER = logging.getLogger("prefect.tracking")
RUN = "the run"
"""Name of the refused part if MLflow takes nothing of an entry."""
STORE = "the store's database"


class DatasetFacts(BaseModel):
    """A dataset that a run reads."""

    name: str
    digest: str
    source_type: str
    source: str
    context: str


class ModelFacts(BaseModel):
    """A model that a run exported, to be a version of a registered model."""

    name: str
    """Name of the registered model."""
    key: str
    """Key of the artifact, which becomes one version and no more."""
    source: str
    """Directory of the artifact."""
    tags: dict[str, str] = {}
    description: str = ""


class DesiredRun(BaseModel):
    """A tracked run as it should look."""

    name: str
    experiment: str
    parent: str | None = None
    """Id of the enclosing run's entry."""
    started: float
    """Unix time, seconds."""
    ended: float | None = None
    status: str = "RUNNING"
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    datasets: list[DatasetFacts] = []
    metrics: dict[str, float] = {}
    """Results, each of which is sent once."""
    live: str | None = None
    """Path of the stage's metrics.jsonl. It is followed while it grows, as is system_metrics.jsonl beside it."""
    files: dict[str, str] = {}
    """Files to show with the run: path → folder in the run's artifacts."""
    models: list[ModelFacts] = []
    """Models to register once the run has ended."""
    cached_key: str | None = None
    """Key of the result, if this run only found it. The run that computed the result is looked up and linked."""

    @property
    def key(self) -> str | None:
        """Key of the result that the run made or found; None for runs of whole flows."""
        return self.tags.get(KEY_TAG)

    def clean(self) -> None:
        """Remove secrets, and escape what databases cannot hold (zero bytes, half characters)."""
        self.name, self.tags, self.params = _clean(self.name), _all_clean(self.tags), _all_clean(self.params)
        self.metrics = {_clean(name): value for name, value in self.metrics.items()}
        for facts in self.datasets:
            facts.name, facts.source = _clean(facts.name), _clean(facts.source)
        for model in self.models:
            model.tags, model.description = _all_clean(model.tags), _clean(model.description)


class Delivered(BaseModel):
    """Progress of an entry: what the server has of it."""

    run_id: str | None = None
    url: str | None = None
    """Page of the run."""
    done: list[str] = []
    """Digests of the tags, params, datasets, files and models already there."""
    offsets: dict[str, int] = {}
    """Bytes already sent of metrics.jsonl and system_metrics.jsonl."""
    last_step: dict[str, int] = {}
    """Last step sent of each metric. A resumed stage repeats steps, which are not sent again."""
    uncertain: bool = False
    """True if a sending began and its outcome was not seen: the server must be asked before more is sent."""
    status: str | None = None
    server: str | None = None
    """Server of the run (see `server_in_use`); no other knows it. None if the run is nowhere yet."""
    refused: dict[str, str] = {}
    """Parts that the server will not take, with its reasons; `RUN` stands for all that is left."""
    deleted: bool = False
    """True if a person has deleted the run on the server."""
    failed: str | None = None
    """Reason why the last sending failed, though the server answers otherwise."""
    unanswered: str | None = None
    """Reason why the server took nothing at all when last asked."""


class OutboxEntry(BaseModel):
    """A tracked run on its way to MLflow, from the first wish to the last confirmation."""

    id: str
    owner: str | None
    """Name of the lock that the entry's process holds while it lives. None if anybody may take the entry over."""
    desired: DesiredRun
    delivered: Delivered = Delivered()
    store: str = ""
    """Folder of the store with the files to be sent."""

    def move(self, store: str) -> None:
        """Adapt paths to the present folder of the store, in case it was copied or moved."""
        there, self.store = self.store, store
        if not there or there == store:
            return

        def moved(path: str) -> str:
            inside = path.startswith(f"{there}/")
            return store + path.removeprefix(there) if inside else path

        desired = self.desired
        desired.live = moved(desired.live) if desired.live is not None else None
        desired.files = {moved(path): folder for path, folder in desired.files.items()}
        desired.tags = {name: moved(value) for name, value in desired.tags.items()}
        for model in desired.models:
            model.source = moved(model.source)

    @property
    def settled(self) -> bool:
        """True if nothing is left to send. The same process does not send again what was refused."""
        return self.desired.status != "RUNNING" and (
            self.delivered.status == self.desired.status or RUN in self.delivered.refused
        )

    @property
    def trouble(self) -> str | None:
        """Reason why MLflow lacks something of the run, in words; None if it has everything."""
        if self.delivered.refused:
            return "; ".join(f"MLflow refused {what}: {reason}" for what, reason in self.delivered.refused.items())
        if self.delivered.failed is not None:
            return f"could not be sent: {self.delivered.failed}"
        return None if self.settled else f"not sent yet: {self.delivered.unanswered or 'MLflow has not answered yet'}"


def server_in_use() -> str:
    """Return where tracked runs go: the server's address without secrets, or the database in the store."""
    return redacted(os.environ.get("MLFLOW_TRACKING_URI") or STORE)


def _clean(text: str) -> str:
    return redacted(text).encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _all_clean(texts: dict[str, str]) -> dict[str, str]:
    return {_clean(name): _clean(value) for name, value in texts.items()}
