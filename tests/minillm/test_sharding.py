"""A teacher whose weights are shared out says what the whole one says, in any number of processes and every stage."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from minillm.files import write_json
from minillm.models.causal_lm import is_teacher, load_model
from minillm.stages.base import Stage
from minillm.stages.training import Respond, StoreKnowledge
from tests.minillm.direct import run_stage
from tests.minillm.jobs import ROOT, run_worker, write_job
from tests.minillm.test_processes import given, history
from tests.minillm.trainings import MAX_TOKENS, settings, text_inputs, without_dropout


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Compare both teachers in 1, 2 and 4 processes; return what each process found, by precision."""
    found = tmp_path_factory.mktemp("rows") / "rows.json"
    command = [sys.executable, "-m", "benchmarks.sharding", "--size", "small", "--json", str(found), "--precisions"]
    done = subprocess.run([*command, "float64", "float32"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(found.read_text(encoding="utf-8"))


def test_rollouts_scores_and_losses_are_those_of_the_whole_teacher(rows):
    assert {(row["precision"], row["processes"]) for row in rows} >= {("float64", 4), ("float32", 2)}
    for row in rows:
        assert row["same_tokens"], row
        assert max(row["log_prob"], row["loss"]) <= (0 if row["precision"] == "float64" else 1e-6), row
    ends = [max(row["tokens"]) for row in rows if (row["precision"], row["processes"]) == ("float64", 4)]
    assert len(set(ends)) > 1, "some process has to go on for the others' sake"


def test_a_processes_share_of_the_weights_falls_as_their_number(rows):
    for row in rows:
        assert row["held"] == (row["whole"] - row["head"]) / row["processes"] + row["head"], row


def run(folder: Path, stage: Stage, inputs: dict[str, Path], **runtime: Any) -> Path:
    """Run a stage in two processes; return its output."""
    done = run_worker(write_job(folder, stage, inputs, processes=2, **runtime), 2)
    assert done.returncode == 0, done.stdout[-3000:]
    return folder / "output"


@pytest.mark.parametrize(
    ("kind", "runtime", "more", "changes"),
    [
        ("minillm", {"zero_stage": 3, "generation_batch_size": 3}, {"gather_student": False}, {"lora": {"rank": 2}}),
        ("kd", {"micro_batch_tokens": 36}, {"teacher_offload": "cpu"}, {"precision": "bfloat16"}),
    ],
)
def test_trainings_are_those_of_the_whole_teacher(kind, runtime, more, changes, inputs, teacher, tmp_path):
    stage = without_dropout(settings(kind, steps=4, evaluate_every=2, select_by="validation_loss", **changes))
    found = []
    for name, sharing in (("whole", {}), ("shared", {"teacher_zero_stage": 3, **more})):
        output = run(tmp_path / name, stage, given(kind, inputs, teacher), **runtime, **sharing)
        found.append((history(tmp_path / name), load_file(output / "model" / "model.safetensors")))
    (losses, weights), (want, right) = found
    assert losses == pytest.approx(want, rel=1e-6)
    assert weights.keys() == right.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_process_without_work_passes_through_the_teacher_for_the_others(inputs, teacher, tmp_path):
    """All rows are in one shard, which the first process writes; each answers every other prompt."""
    told = text_inputs(inputs) | {"model": teacher}
    respond = Respond(role="teacher", max_tokens=MAX_TOKENS, precision="float32", seed=1)
    shared, whole = (
        [
            run(tmp_path / f"{number}-{stage.kind}", stage, told, teacher_zero_stage=number)
            for stage in (StoreKnowledge(precision="float32"), respond)
        ]
        for number in (3, 0)
    )
    for name in ("shard-00000.safetensors", "head.safetensors"):
        got, want = (load_file(of[0] / name) for of in (shared, whole))
        assert all(torch.equal(got[key], want[key]) for key in want)
    got, want = (pd.read_parquet(of[1] / "responses.parquet")["response_ids"].map(list) for of in (shared, whole))
    assert got.tolist() == want.tolist()


def test_a_teacher_is_known_by_its_training_or_has_none(tmp_path):
    assert is_teacher(tmp_path)
    for role, wanted in (("teacher", True), ("initial", False), (None, False)):
        write_json(tmp_path / "manifest.json", {"settings": {} if role is None else {"role": role}})
        assert is_teacher(tmp_path) == wanted


@pytest.mark.parametrize(("role", "sharded"), [("teacher", True), ("student", False)])
def test_a_student_that_is_taken_as_it_comes_answers_whole(role, sharded, inputs, teacher, tmp_path, monkeypatch):
    loaded = []

    def load_sharded(path: Path, *_: Any) -> PreTrainedModel:
        loaded.append(path)
        return load_model(path)

    monkeypatch.setattr("minillm.models.sharding.load_sharded", load_sharded)
    stage = Respond(role=role, max_tokens=MAX_TOKENS, precision="float32", seed=1)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    run_stage(stage, text_inputs(inputs) | {"model": teacher}, tmp_path / role, teacher_zero_stage=3)
    assert loaded == ([teacher] if sharded else [])
