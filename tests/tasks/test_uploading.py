"""Uploads to a stand-in for the hub, with real workers: what it receives, and what becomes of failures."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from minillm.config import Config
from minillm.errors import StageError
from minillm.store.artifacts import METRICS, Store
from minillm.store.manifest import Artifact
from tasks.reporting import upload_model
from tests.minillm.hub import CUT, Hub, serve
from tests.small import small_config
from tests.tasks.stages import run, tracked_runs

pytestmark = pytest.mark.usefixtures("prefect_server")

TOKEN = "hf_" + "aB3" * 12
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# Talker\n",
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": os.urandom(300_000),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub({}, token=TOKEN)) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def uploading(folder: Path, *overrides: str) -> Config:
    return small_config(folder, "export.hub=me/talker", "export.method=sft", *overrides)


def stages(config: Config) -> Mapping[str, Any]:
    return {"upload": upload_model.submit(config, "sft", exported(config))}


def exported(config: Config) -> Artifact:
    """Store the export of an imagined model, with a curve that is no part of it."""
    store, key = Store(config.runtime.store), "e" * 64
    if (found := store.find("model", key)) is not None:
        return found
    output = store.work_directory("model", key) / "output"
    for name, content in {**FILES, METRICS: b""}.items():
        (output / name).write_bytes(content)
    return store.complete("model", key, {"summary": {}})


def test_what_arrives_is_the_export_and_nothing_else_whatever_fails_on_the_way(tmp_path, hub, caplog):
    caplog.set_level(logging.DEBUG)
    hub.faults = [("repos/create", 500), ("/xorbs/", CUT), ("/commit/", 503)]
    first = run(uploading(tmp_path), stages)
    assert first.names() == {"upload": "Completed"}
    assert hub.faults == []
    assert first.task_runs["upload sft"].run_count == 2, "the client itself tries again where it can"
    received = dict(hub.repositories["models", "me/talker"])
    assert received.pop(".gitattributes")
    assert received == FILES
    assert hub.private == {"me/talker"}
    url = f"{hub.endpoint}/me/talker/tree/{hub.commits[-1]}"
    tags = {run.info.run_name: run.data.tags for run in tracked_runs(uploading(tmp_path))}
    assert tags["upload sft"]["summary.url"] == url
    (parent,) = [tags for name, tags in tags.items() if name != "upload sft"]
    assert parent["hub.url"] == url
    assert parent["mlflow.note.content"].endswith(f"; hub: [me/talker]({url})")
    assert f"uploaded: {url}" in caplog.text
    assert TOKEN not in caplog.text
    left = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert left == []

    asked = len(hub.asked)
    assert run(uploading(tmp_path), stages).names() == {"upload": "Cached"}
    assert len(hub.asked) == asked, "the same model under the same name is there already"


def test_a_refused_token_is_told_once_and_loses_nothing(tmp_path, hub, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "zZ9" * 12)
    refused = run(uploading(tmp_path), stages)
    with pytest.raises(
        StageError, match=r"does not accept the token in HF_TOKEN \(401\); export one that may write to"
    ):
        refused.states["upload"].result()
    assert refused.task_runs["upload sft"].run_count == 1
    assert "zZ9" not in caplog.text
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(uploading(tmp_path), stages).names() == {"upload": "Completed"}
    assert hub.repositories["models", "me/talker"]["model.safetensors"] == FILES["model.safetensors"]


def test_a_private_model_goes_into_no_public_repository_and_files_of_an_earlier_one_go(tmp_path, hub):
    earlier = {"model-00001-of-00002.safetensors": b"x", "README.md": b"earlier"}
    hub.repositories["models", "me/talker"] = dict(earlier)
    refused = run(uploading(tmp_path), stages)
    told = r"me/talker is public, but export\.public is false, so nothing was uploaded; make it private on its page"
    with pytest.raises(StageError, match=told):
        refused.states["upload"].result()
    assert hub.repositories["models", "me/talker"] == earlier
    done = run(uploading(tmp_path, "export.public=true"), stages)
    assert done.names() == {"upload": "Completed"}
    assert hub.repositories["models", "me/talker"] == FILES
    assert json.loads((Path(done.artifact("upload").path) / "upload.json").read_text("utf-8")) == {
        "url": f"{hub.endpoint}/me/talker/tree/{hub.commits[-1]}"
    }
