"""What MLflow shows of a flow run and of its stages: names, params, datasets, results, files and links."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from minillm.artifacts import METRICS
from minillm.config import Model, Source, Tracked
from minillm.data.sources import Resolved
from minillm.errors import StageError
from minillm.files import local_path
from minillm.manifest import Artifact, text_digest
from minillm.redaction import redacted
from minillm.stages import (
    Benchmarks,
    Card,
    DownstreamTasks,
    HeldOutTexts,
    Preference,
    Questions,
    Report,
    Score,
    Stage,
    StudyReport,
)
from minillm.startup import load
from tasks.outbox import Outbox
from tasks.records import KEY_TAG, DatasetFacts, ModelFacts, Record, Wanted
from tasks.settings import PREFECT_UI, refusing, set_mlflow_defaults

if TYPE_CHECKING:
    from tasks.tracked_runs import TrackedRuns

SHOWN_FILES = (".md", ".html", ".csv", ".png", ".json")
SHOWN_BYTES = 5_000_000
PAGES = (Report, StudyReport)
"""Stages whose files are shown with the run of the whole flow."""
CURVES = ("train/", "valid/")
"""Beginnings of the names in metrics.jsonl: a result of such a name would be one more point of its curve."""
FOR_EVALUATION = (Benchmarks, Questions, HeldOutTexts, DownstreamTasks, Preference)
"""Stages that read what models are measured on."""
SERVERS = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc")
"""What the address of a tracking server can begin with."""
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36
SCORES = "scores.parquet"
SCORES_FOLDER = "scores"
"""In the enclosing run's files: METHOD/scores.parquet, from which runs are compared prompt by prompt."""
PARENT_TAG = "mlflow.parentRunId"
WEIGHTS_TAG = "weights"
"""On a registered model: digest of the trained weights, which one artifact after another may hold beside a new card."""
COMPARED_TAG = "compared"
"""On the runs that are comparisons: ids of the runs compared."""


class Tracker:
    """Sends records over one connection, made when first needed.

    MLflow takes seconds to import and to connect, so both happen on the sending thread.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._sender: Any = None

    def __call__(self, outbox: Outbox, record: Record, wanted: Wanted) -> None:
        """Send a record; see `tasks.mlflow_client.Sender.send`."""
        if self._sender is None:
            set_mlflow_defaults()
            from tasks.mlflow_client import Sender

            self._sender = Sender(self._store)
        self._sender.send(outbox, record, wanted)


def preload() -> None:
    """Import MLflow in the background, while the caller waits for Prefect's server."""
    with refusing():
        set_mlflow_defaults()
    threading.Thread(target=load, args=("tasks.mlflow_client",), daemon=True).start()


def tracked_runs(store: str) -> "TrackedRuns":
    """The runs of the tracking server in use, or of a store's database.

    Args:
        store: `runtime.store` of the runs.

    Raises:
        StageError: There is no database, or the server does not answer.
    """
    set_mlflow_defaults()
    from tasks.tracked_runs import TrackedRuns

    return TrackedRuns(local_path(store).resolve())


def require_server() -> None:
    """Look whether MLFLOW_TRACKING_URI is an address that tracked runs can go to; MLflow itself is not asked.

    Raises:
        StageError: The address is malformed, or that of a folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme = uri.partition(":")[0].partition("+")[0]
    if not uri or scheme in SERVERS:
        return
    files = scheme in ("file", uri)
    if files and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() == "true":
        return
    raise StageError(
        f"MLFLOW_TRACKING_URI {uri} is no place for tracked runs{', as MLflow keeps none in files' if files else ''}: "
        "give the address of a server (http://…) or of a database (sqlite:///…, postgresql://…), or unset it for the "
        "database in the store"
    )


def flow_run(config: Tracked, flow_run_id: str, flow_run_name: str) -> Wanted:
    """The run that encloses all stages of one flow run; its params are the whole configuration."""
    page = prefect_page("flow-run", flow_run_id)
    tags = {"prefect.flow_run_id": flow_run_id, "prefect.url": page}
    tags["mlflow.note.content"] = f"Prefect: [{flow_run_name}]({page})"
    return Wanted(
        name=f"{config.name} {flow_run_name}",
        experiment=config.name,
        started=time.time(),
        tags=tags,
        params=flat_params(config.model_dump(mode="json")),
    )


def stage_run(
    config: Tracked, stage: Stage, label: str, key: str, flow_run_id: str, task_run_id: str, inputs: dict[str, str]
) -> Wanted:
    """The nested run of one stage; its params are the stage's settings."""
    page = prefect_page("task-run", task_run_id)
    tags = {
        KEY_TAG: key,
        "stage": stage.kind,
        "prefect.flow_run_id": flow_run_id,
        "prefect.task_run_id": task_run_id,
        "prefect.url": page,
        "mlflow.note.content": f"Prefect: [{label}]({page})",
        **{f"input.{name}": digest for name, digest in inputs.items()},
    }
    return Wanted(
        name=label,
        experiment=config.name,
        parent=flow_run_id,
        started=time.time(),
        tags=tags,
        params=flat_params(stage.model_dump(mode="json")),
    )


def datasets(stage: Stage, sources: Mapping[str, tuple[Source | Model, Resolved]]) -> list[DatasetFacts]:
    """The data among a stage's sources, as MLflow's dataset inputs, named by what they are to the run."""
    return [
        DatasetFacts(
            name=name,
            digest=short_digest(resolved.fingerprint),
            source_type="local" if source.hub is None else "hf",
            source=source.model_dump_json(exclude_none=True),
            context="evaluation" if isinstance(stage, FOR_EVALUATION) else "training",
        )
        for name, (source, resolved) in sources.items()
        if isinstance(source, Source)
    ]


def finished(wanted: Wanted, artifact: Artifact, stage: Stage) -> None:
    """Complete a stage's run with its results: numbers as metrics, words and what made them as tags."""
    manifest = artifact.manifest()
    summary = manifest.summary
    numbers = {name: float(value) for name, value in summary.items() if not isinstance(value, str)}
    wanted.metrics |= {name: value for name, value in numbers.items() if not name.startswith(CURVES)}
    wanted.tags |= {f"summary.{name}": value for name, value in summary.items() if isinstance(value, str)}
    wanted.tags |= {f"version.{library}": version for library, version in manifest.versions.items()}
    wanted.tags |= {"code": manifest.source_digest, "artifact": artifact.path, "cached": "false"}
    wanted.live = str(Path(artifact.path) / METRICS)
    if not isinstance(stage, PAGES):
        wanted.files |= shown_files(artifact)
    wanted.status, wanted.ended = "FINISHED", time.time()


def found(wanted: Wanted, artifact: Artifact, stage: Stage) -> None:
    """Complete the run of a stage whose result was already there: the results, but not the training curve again."""
    finished(wanted, artifact, stage)
    wanted.tags["cached"] = "true"
    wanted.cached_key, wanted.live, wanted.files = artifact.key, None, {}


def on_parent(wanted: Wanted, artifact: Artifact, stage: Stage) -> None:
    """What a finished stage adds to the enclosing run: the numbers that it says are to be shown, and the report."""
    for name, value in artifact.manifest().summary.items():
        metric, *rest = name.split("/")
        if metric in stage.shown:
            wanted.metrics["/".join([metric, *stage.rows, *rest])] = float(value)
    if isinstance(stage, Score):
        wanted.files[str(Path(artifact.path) / SCORES)] = f"{SCORES_FOLDER}/{stage.role}"
    if isinstance(stage, PAGES):
        wanted.files |= shown_files(artifact)
    if isinstance(stage, Card):
        name = f"{wanted.experiment}-{stage.role}"
        weights = artifact.manifest().inputs["model"].digest
        tags = {"role": stage.role, WEIGHTS_TAG: weights, **score_tags(wanted.metrics, stage.role)}
        facts = ModelFacts(name=name, key=artifact.key, source=artifact.path, tags=tags)
        wanted.models = [*(model for model in wanted.models if model.name != name), facts]


def score_tags(metrics: Mapping[str, float], role: str) -> dict[str, str]:
    """A row's scores by METRIC/BENCHMARK, from the enclosing run's METRIC/ROW/BENCHMARK."""
    scores = {tuple(name.split("/")): f"{value:.2f}" for name, value in metrics.items()}
    return {
        f"{name[0]}/{name[2]}": value
        for name, value in scores.items()
        if len(name) == 3 and name[0] in Score.shown and name[1] == role and not name[2].endswith("_spread")
    }


def shown_files(artifact: Artifact) -> dict[str, str]:
    """Files of an artifact that a person reads, with their folders; never models or data."""
    root = Path(artifact.path)
    names = [name for name in artifact.manifest().files if not name.startswith("model/")]
    readable = [n for n in names if Path(n).suffix in SHOWN_FILES and (root / n).stat().st_size <= SHOWN_BYTES]
    return {str(root / name): "" if Path(name).parent == Path() else str(Path(name).parent) for name in readable}


def flat_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names with their values as text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_params(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)[:LONGEST_PARAM]
    return flat


def short_digest(fingerprint: str) -> str:
    """Of a local source its sha256, of one from the hub that of its name, commit and file; as long as MLflow takes."""
    local = fingerprint.startswith("sha256:")
    return (fingerprint.removeprefix("sha256:") if local else text_digest(fingerprint))[:LONGEST_DIGEST]


def prefect_page(kind: str, identity: str) -> str:
    """Address of a flow or task run in the Prefect server in use, or in the one that `make ui` starts."""
    server = PREFECT_UI_URL.value() if PREFECT_API_URL.value() else PREFECT_UI
    return redacted(f"{server or PREFECT_UI}/runs/{kind}/{identity}")
