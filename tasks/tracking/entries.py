"""What MLflow is to be told of one run, and how far it has been told: the entries that the outbox keeps."""

import os

from pydantic import BaseModel

from minillm.redaction import redacted
from tasks.tracking.tags import KEY_TAG

RUN = "the run"
"""What is refused where MLflow takes nothing of an entry."""
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
    """Of the registered model."""
    key: str
    """Of the artifact, which becomes one version and no more."""
    source: str
    """Its directory."""
    tags: dict[str, str] = {}
    description: str = ""


class DesiredRun(BaseModel):
    """What a tracked run should look like."""

    name: str
    experiment: str
    parent: str | None = None
    """Entry of the enclosing run."""
    started: float
    """Unix time, seconds."""
    ended: float | None = None
    status: str = "RUNNING"
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    datasets: list[DatasetFacts] = []
    metrics: dict[str, float] = {}
    """Results, each sent once."""
    live: str | None = None
    """metrics.jsonl of the stage, followed while it grows, and with it system_metrics.jsonl beside it."""
    files: dict[str, str] = {}
    """Files to show with the run: path → folder in the run's artifacts."""
    models: list[ModelFacts] = []
    """To be registered once the run has ended."""
    cached_key: str | None = None
    """Key of the stage, where this run only found its result; the run that computed it is looked up and linked."""

    @property
    def key(self) -> str | None:
        """Of the result that the run made or found; None for runs of whole flows."""
        return self.tags.get(KEY_TAG)

    def clean(self) -> None:
        """Take out secrets, and write what no database holds (zero bytes, half characters) as escapes."""
        self.name, self.tags, self.params = _clean(self.name), _all_clean(self.tags), _all_clean(self.params)
        self.metrics = {_clean(name): value for name, value in self.metrics.items()}
        for facts in self.datasets:
            facts.name, facts.source = _clean(facts.name), _clean(facts.source)
        for model in self.models:
            model.tags, model.description = _all_clean(model.tags), _clean(model.description)


class Delivered(BaseModel):
    """How far the server knows it."""

    run_id: str | None = None
    url: str | None = None
    """Of its page."""
    done: list[str] = []
    """Digests of the tags, params, datasets, files and models already there."""
    offsets: dict[str, int] = {}
    """Bytes already sent of metrics.jsonl and system_metrics.jsonl."""
    last_step: dict[str, int] = {}
    """Of each metric; a resumed stage repeats steps, which are not sent again."""
    uncertain: bool = False
    """A sending began and its outcome was not seen: ask the server before sending again."""
    status: str | None = None
    server: str | None = None
    """Where its run is (see `server_in_use`): any other knows nothing of it. None: nowhere yet."""
    refused: dict[str, str] = {}
    """What the server will not take, with its reason; `RUN` stands for all that is left."""
    deleted: bool = False
    """A person has deleted the run on the server."""
    failed: str | None = None
    """Why the last sending failed, though the server answers otherwise."""
    unanswered: str | None = None
    """Why the server took nothing at all when last asked."""


class OutboxEntry(BaseModel):
    """A tracked run, from the first wish to the last confirmation."""

    id: str
    owner: str | None
    """Name of the lock that its process holds for as long as it lives, whatever the clock says. None: anybody's."""
    desired: DesiredRun
    delivered: Delivered = Delivered()
    store: str = ""
    """Folder of the store, in which the files to be sent lie."""

    def move(self, store: str) -> None:
        """Name places in the store where it is now, if it was copied or moved since."""
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
        """Nothing is left to send; what was refused is not sent again by the same process."""
        return self.desired.status != "RUNNING" and (
            self.delivered.status == self.desired.status or RUN in self.delivered.refused
        )

    @property
    def trouble(self) -> str | None:
        """Why MLflow has not all of it, in words; None where it has."""
        if self.delivered.refused:
            return "; ".join(f"MLflow refused {what}: {reason}" for what, reason in self.delivered.refused.items())
        if self.delivered.failed is not None:
            return f"could not be sent: {self.delivered.failed}"
        return None if self.settled else f"not sent yet: {self.delivered.unanswered or 'MLflow has not answered yet'}"


def server_in_use() -> str:
    """Where tracked runs go: the server's address as it may be shown, or the database in the store."""
    return redacted(os.environ.get("MLFLOW_TRACKING_URI") or STORE)


def _clean(text: str) -> str:
    return redacted(text).encode(errors="backslashreplace").decode().replace("\0", "\\x00")


def _all_clean(texts: dict[str, str]) -> dict[str, str]:
    return {_clean(name): _clean(value) for name, value in texts.items()}
