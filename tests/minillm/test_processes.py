"""Several processes, on one machine or two, train as one; a run can continue with another number of them."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from minillm.config import Runtime
from minillm.errors import BAD_INPUT
from minillm.models.output_head import HeadedModel
from minillm.stages.training import Train
from minillm.training.engine import make_engine
from tests.minillm.direct import group_of_one
from tests.minillm.jobs import run_worker, worker_command, worker_environment, write_job
from tests.minillm.models_in_small import ARCHITECTURES, LLAMA_LIKE
from tests.minillm.trainings import checkpoint_steps, method, settings, text_inputs, weights, without_dropout
from tests.waiting import wait_for

KINDS = ("sft", "kd", "minillm")


def given(kind: str, inputs: dict[str, Path], teacher: Path) -> dict[str, Path]:
    needs = {"sft": {}, "kd": {"teacher": teacher}, "minillm": {"teacher": teacher}}
    return text_inputs(inputs, *(["plain_text"] if kind == "minillm" else [])) | needs[kind]


def train(
    folder: Path, kind: str, inputs: dict[str, Path], architecture: dict[str, Any] | None = None, **runtime: Any
) -> list[float]:
    """Return the losses on held-out rows after every second step."""
    stage = without_dropout(settings(kind, steps=6, evaluate_every=2, select_by="validation_loss"))
    if architecture is not None:
        stage = stage.model_copy(update={"architecture": architecture})
    done = run_worker(write_job(folder, stage, inputs, **runtime), runtime.get("processes", 1))
    assert done.returncode == 0, done.stdout[-3000:]
    return history(folder)


def history(folder: Path) -> list[float]:
    record = json.loads((folder / "output" / "selection.json").read_text(encoding="utf-8"))
    return [entry["valid/loss"] for entry in record["history"]]


@pytest.fixture(scope="module")
def alone(inputs, teacher, tmp_path_factory) -> dict[str, list[float]]:
    """Train each method in one process; return its losses."""
    folder = tmp_path_factory.mktemp("alone")
    return {kind: train(folder / kind, kind, given(kind, inputs, teacher)) for kind in KINDS}


IN_SHORT = {("sft", 2), ("kd", 1), ("minillm", 0), ("minillm", 3)}
"""Combinations that run in the short tests; all others are long."""


@pytest.mark.parametrize(
    ("kind", "zero_stage"),
    [
        pytest.param(kind, stage, marks=[] if (kind, stage) in IN_SHORT else pytest.mark.long)
        for kind in KINDS
        for stage in range(4)
    ],
)
def test_two_processes_train_as_one_whatever_they_share(kind, zero_stage, alone, inputs, teacher, tmp_path):
    limit: dict[str, Any] = {"micro_batch_tokens": 36} if zero_stage > 1 else {}
    losses = train(tmp_path, kind, given(kind, inputs, teacher), processes=2, zero_stage=zero_stage, **limit)
    assert losses == pytest.approx(alone[kind], rel=1e-4)
    assert len(losses) == 3
    assert weights(tmp_path)


EXPERTS = {
    "mixtral": {"model_type": "mixtral", **LLAMA_LIKE, "num_local_experts": 16, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **LLAMA_LIKE,
        "moe_intermediate_size": 32,
        "num_experts": 16,
        "num_experts_per_tok": 2,
    },
    "olmoe": {"model_type": "olmoe", **LLAMA_LIKE, "num_experts": 16, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize(
    "name", ["mixtral", *(pytest.param(n, marks=pytest.mark.long) for n in EXPERTS if n != "mixtral")]
)
def test_experts_train_the_same_in_two_processes(name, inputs, teacher, tmp_path):
    """With one row at a time and 16 experts, each process has steps in which some experts get no token of its own."""
    shares = [{}, *({"processes": 2, "zero_stage": stage, "micro_batch_size": 1} for stage in (0, 2, 3))]
    found = []
    for number, runtime in enumerate(shares):
        folder = tmp_path / str(number)
        losses = train(folder, "minillm", given("minillm", inputs, teacher), EXPERTS[name], **runtime)
        found.append((losses, weights(folder)))
    for losses, learnt in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        for weight, tensor in learnt.items():
            torch.testing.assert_close(tensor, found[0][1][weight], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("zero_stage", [pytest.param(1, marks=pytest.mark.long), 2, 3])
def test_an_optimizer_in_the_memory_of_the_cpu_takes_the_same_steps(zero_stage, alone, inputs, teacher, tmp_path):
    shares: dict[str, Any] = {"processes": 2, "zero_stage": zero_stage, "offload_optimizer": True}
    assert train(tmp_path, "sft", given("sft", inputs, teacher), **shares) == pytest.approx(alone["sft"], rel=1e-4)


def test_engines_hold_their_optimizers_where_they_are_told_to():
    held = {}
    with group_of_one():
        for zero_stage, wanted in itertools.product((1, 2, 3), (False, True)):
            model = GPT2LMHeadModel(GPT2Config(**ARCHITECTURES["gpt2"], vocab_size=16))
            runtime = Runtime(zero_stage=zero_stage, offload_optimizer=wanted)
            optimizer = make_engine(HeadedModel(model, 16), method("sft").training, 1, runtime).optimizer
            held[zero_stage, wanted] = optimizer.offload_optimizer if zero_stage == 3 else optimizer.cpu_offload
    assert held == {(zero_stage, wanted): wanted for zero_stage, wanted in held}
    assert len(held) == 6


def test_bfloat16_is_shared_and_offloaded_too(inputs, teacher, tmp_path):
    low = without_dropout(settings("kd", steps=12, precision="bfloat16", select_by="validation_loss"))
    losses = []
    for shares in ({}, {"processes": 2, "zero_stage": 2, "offload_optimizer": True}):
        folder = tmp_path / str(len(shares))
        done = run_worker(write_job(folder, low, given("kd", inputs, teacher), **shares), shares.get("processes", 1))
        assert done.returncode == 0, done.stdout[-3000:]
        assert {value.dtype for value in weights(folder).values()} == {torch.bfloat16}
        losses.append(history(folder))
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
    assert losses[1][-1] < losses[1][0]


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_worker(write_job(folder, long_text(), text_inputs(inputs))).returncode == 0
    return folder


def long_text() -> Train:
    return without_dropout(settings("sft", steps=30, select_by="validation_loss"))


@pytest.mark.parametrize(("zero_stage", "before", "after"), [(0, 1, 2), (2, 1, 2), (3, 2, 1)])
def test_a_killed_run_continues_on_another_number_of_processes(
    zero_stage, before, after, undisturbed, inputs, tmp_path
):
    shared = {"zero_stage": zero_stage, "checkpoint_every": 3}
    spec = write_job(tmp_path, long_text(), text_inputs(inputs), processes=before, **shared)
    worker = subprocess.Popen(
        worker_command(spec, before), env=worker_environment(before), cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: checkpoint_steps(tmp_path)[-1:] >= [9])
    worker.terminate()
    worker.wait()
    assert not (tmp_path / "output" / "model").exists()
    done = run_worker(write_job(tmp_path, long_text(), text_inputs(inputs), processes=after, **shared), after)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "continuing from the checkpoint of step" in done.stdout
    assert ("put together" in done.stdout) == (zero_stage > 0)
    assert history(tmp_path) == pytest.approx(history(undisturbed), rel=1e-4)


@pytest.mark.parametrize(
    ("before", "after", "teacher_stage"), [(2, 1, 3), pytest.param(1, 2, 0, marks=pytest.mark.long)]
)
def test_a_round_of_rollouts_continues_on_another_number_of_processes(
    before, after, teacher_stage, inputs, teacher, tmp_path
):
    """Each process keeps the teacher's hidden states of its own rows; the others' are other rows afterwards."""
    stage = without_dropout(settings("minillm", steps=6, evaluate_every=6, select_by="validation_loss"))
    shared = {"teacher_zero_stage": teacher_stage}
    _run_rollouts(tmp_path, stage, given("minillm", inputs, teacher), before, **shared)
    undisturbed = history(tmp_path), weights(tmp_path)
    parts = [tmp_path / "checkpoints" / "step-00000003" / f"feed-{number}.pt" for number in range(before)]
    rows = [row for part in parts for row in torch.load(part)["teacher"]]
    assert sorted(rows) == list(range(16))
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000006")  # as if killed in the middle of the round
    shutil.rmtree(tmp_path / "output")
    done = _run_rollouts(tmp_path, stage, given("minillm", inputs, teacher), after, **shared)
    assert "continuing from the checkpoint of step 3" in done.stdout
    assert history(tmp_path) == pytest.approx(undisturbed[0], rel=1e-5)
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, undisturbed[1][name], rtol=1e-3, atol=1e-4)


def _run_rollouts(
    folder: Path, stage: Train, inputs: dict[str, Path], processes: int, **runtime: Any
) -> subprocess.CompletedProcess[str]:
    job = write_job(folder, stage, inputs, processes=processes, checkpoint_every=3, **runtime)
    done = run_worker(job, processes)
    assert done.returncode == 0, done.stdout[-3000:]
    return done


def test_another_zero_stage_in_the_middle_is_refused_with_the_remedy(inputs, tmp_path):
    spec = write_job(tmp_path, long_text(), text_inputs(inputs), checkpoint_every=3)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: checkpoint_steps(tmp_path)[-1:] >= [3])
    worker.terminate()
    worker.wait()
    done = run_worker(write_job(tmp_path, long_text(), text_inputs(inputs), zero_stage=2))
    assert done.returncode == BAD_INPUT
    assert "this run would use ZeRO stage 2, but" in (tmp_path / "error.txt").read_text(encoding="utf-8")
