"""Prefect's pages of a stage, on a real server."""

import json
import time
from pathlib import Path
from typing import cast

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from tasks.running import pages
from tasks.running.pages import LAST_SECONDS, StagePage
from tasks.tracking.entries import Delivered
from tasks.tracking.outbox import Outbox
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("prefect_server")


class LateOutbox:
    """An outbox whose server tells late where a run is."""

    url: str | None = None

    def delivered(self, identity: str) -> Delivered:
        return Delivered(url=self.url)


def shown(key: str) -> list[str]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return [str(artifact.data) for artifact in found]


def test_the_link_of_a_stage_that_is_over_before_it_is_known_comes_late_and_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pages, "EVERY_SECONDS", 0.1)
    outbox, metrics = LateOutbox(), tmp_path / "metrics.jsonl"
    line = {"time": time.time(), "step": 1, "total": 2, "metrics": {}}
    metrics.write_text(json.dumps(line) + "\n", encoding="utf-8")
    began = time.monotonic()
    with StagePage(metrics, cast(Outbox, outbox), "record", "a short stage"):
        pass
    assert time.monotonic() - began < LAST_SECONDS
    assert shown("progress-a-short-stage") == ["50"]
    assert shown("mlflow-a-short-stage") == []
    with metrics.open("a", encoding="utf-8") as stream:  # another attempt
        stream.write(json.dumps({**line, "step": 2}) + "\n")
    outbox.url = "http://127.0.0.1:1/a-run"
    wait_for(lambda: shown("mlflow-a-short-stage"))
    assert shown("mlflow-a-short-stage") == ["[a short stage in MLflow](http://127.0.0.1:1/a-run)"]
    assert shown("progress-a-short-stage") == ["50"]
