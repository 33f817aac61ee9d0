"""Contents of tracked runs: names, params, datasets, results, files and links of a flow run and of its stages."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL

from minillm.config import Model, Source, Tracked
from minillm.data.sources import Resolved
from minillm.redaction import redacted
from minillm.stages.base import Stage
from minillm.stages.measuring import Score
from minillm.stages.pages import Card, Upload
from minillm.stages.system2 import System2Card
from minillm.store.artifacts import METRICS
from minillm.store.manifest import Artifact, text_digest
from tasks.environment.settings import PREFECT_UI
from tasks.tracking.entries import DatasetFacts, DesiredRun, ModelFacts
from tasks.tracking.tags import CACHED_TAG, KEY_TAG, SCORES, SCORES_FOLDER, WEIGHTS_TAG

SHOWN_FILES = (".md", ".html", ".csv", ".png", ".json")
SHOWN_BYTES = 5_000_000
CURVES = ("train/", "valid/")
"""Prefixes of the names in metrics.jsonl. A result with such a name would become one more point of a curve."""
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36


def flow_run(config: Tracked, flow_run_id: str, flow_run_name: str) -> DesiredRun:
    """Return the run that encloses all stages of a flow run. Its params are the whole configuration."""
    page = prefect_page("flow-run", flow_run_id)
    note = f"Prefect: [{flow_run_name}]({page})"
    return DesiredRun(
        name=f"{config.name} {flow_run_name}",
        experiment=config.name,
        started=time.time(),
        tags={"prefect.flow_run_id": flow_run_id, "prefect.url": page, "mlflow.note.content": note},
        params=flat_params(config.model_dump(mode="json")),
    )


def stage_run(
    config: Tracked, stage: Stage, label: str, key: str, flow_run_id: str, task_run_id: str, inputs: dict[str, str]
) -> DesiredRun:
    """Return the nested run of a stage. Its params are the stage's settings."""
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
    return DesiredRun(
        name=label,
        experiment=config.name,
        parent=flow_run_id,
        started=time.time(),
        tags=tags,
        params=flat_params(stage.model_dump(mode="json")),
    )


def datasets(stage: Stage, sources: Mapping[str, tuple[Source | Model, Resolved]]) -> list[DatasetFacts]:
    """Return a stage's data sets as MLflow's dataset inputs, under the names of the stage's inputs."""
    return [
        DatasetFacts(
            name=name,
            digest=short_digest(resolved.fingerprint),
            source_type="local" if source.hub is None else "hf",
            source=source.model_dump_json(exclude_none=True),
            context="evaluation" if stage.for_evaluation else "training",
        )
        for name, (source, resolved) in sources.items()
        if isinstance(source, Source)
    ]


def finished(desired: DesiredRun, artifact: Artifact, stage: Stage, cached: bool) -> None:
    """Complete a stage's run with its results.

    Args:
        desired: The stage's run. Numbers become its metrics; texts, versions and digests become tags.
        artifact: The result.
        stage: The stage.
        cached: Whether the store had the result already. The curve and files of the run that made it are not repeated.
    """
    manifest = artifact.manifest()
    summary = manifest.summary
    numbers = {name: float(value) for name, value in summary.items() if not isinstance(value, str)}
    desired.metrics |= {name: value for name, value in numbers.items() if not name.startswith(CURVES)}
    desired.tags |= {f"summary.{name}": value for name, value in summary.items() if isinstance(value, str)}
    desired.tags |= {f"version.{library}": version for library, version in manifest.versions.items()}
    desired.tags |= {"code": manifest.source_digest, "artifact": artifact.path, CACHED_TAG: str(cached).lower()}
    if cached:
        desired.cached_key = artifact.key
    else:
        desired.live = str(Path(artifact.path) / METRICS)
        desired.files = {} if stage.is_page else shown_files(artifact)
    desired.status, desired.ended = "FINISHED", time.time()


def on_parent(desired: DesiredRun, artifact: Artifact, stage: Stage) -> None:
    """Add to the enclosing run what a finished stage shows there: numbers, scores, pages and an exported model."""
    role = getattr(stage, "role", None)
    row = [] if role is None else [role]
    for name, value in artifact.manifest().summary.items():
        metric, *rest = name.split("/")
        if metric not in stage.shown:
            continue
        if isinstance(value, str):
            desired.tags["/".join([metric, *row, *rest])] = value
        else:
            desired.metrics["/".join([metric, *row, *rest])] = float(value)
    if isinstance(stage, Score):
        desired.files[str(Path(artifact.path) / SCORES)] = f"{SCORES_FOLDER}/{stage.role}"
    if stage.is_page:
        desired.files |= shown_files(artifact)
    if isinstance(stage, Upload):
        url = str(artifact.manifest().summary["url"])
        desired.tags["hub.url"] = url
        desired.tags["mlflow.note.content"] += f"; hub: [{stage.hub}]({url})"
    if isinstance(stage, Card | System2Card):
        name = f"{desired.experiment}-{stage.role}"
        weights = artifact.manifest().inputs["model"].digest
        tags = {"role": stage.role, WEIGHTS_TAG: weights, **score_tags(desired.metrics, stage.role)}
        facts = ModelFacts(name=name, key=artifact.key, source=artifact.path, tags=tags)
        desired.models = [*(model for model in desired.models if model.name != name), facts]


def score_tags(metrics: Mapping[str, float], role: str) -> dict[str, str]:
    """Return the scores of a row by METRIC/BENCHMARK, from the enclosing run's METRIC/ROW/BENCHMARK."""
    scores = {tuple(name.split("/")): f"{value:.2f}" for name, value in metrics.items()}
    return {
        f"{name[0]}/{name[2]}": value
        for name, value in scores.items()
        if len(name) == 3 and name[0] in Score.shown and name[1] == role and not name[2].endswith("_spread")
    }


def shown_files(artifact: Artifact) -> dict[str, str]:
    """Return the files of an artifact that a person reads, with their folders, without models and data."""
    root = Path(artifact.path)
    names = [name for name in artifact.manifest().files if not name.startswith("model/")]
    readable = [n for n in names if Path(n).suffix in SHOWN_FILES and (root / n).stat().st_size <= SHOWN_BYTES]
    return {str(root / name): "" if Path(name).parent == Path() else str(Path(name).parent) for name in readable}


def flat_params(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted names, with their values as text."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_params(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)[:LONGEST_PARAM]
    return flat


def short_digest(fingerprint: str) -> str:
    """Digest of a source, cut for MLflow: a local file's sha256, or the hash of a hub name, commit and file."""
    local = fingerprint.startswith("sha256:")
    return (fingerprint.removeprefix("sha256:") if local else text_digest(fingerprint))[:LONGEST_DIGEST]


def prefect_page(kind: str, identity: str) -> str:
    """Return the page of a flow run or task run on the Prefect server in use, or on that of `make ui`."""
    server = PREFECT_UI_URL.value() if PREFECT_API_URL.value() else PREFECT_UI
    return redacted(f"{server or PREFECT_UI}/runs/{kind}/{identity}")
