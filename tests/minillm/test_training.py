"""The trainer as a real worker process: every architecture, every method, death and resumption."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from minillm.config import Method
from minillm.progress import read_metrics
from minillm.stages import Train
from minillm.worker import BAD_INPUT, STOPPED
from tests.minillm.jobs import (
    make_examples,
    make_plain_text,
    make_tokenizer,
    run_worker,
    worker_command,
    worker_environment,
    write_job,
)
from tests.minillm.models_in_small import ARCHITECTURES

MAX_TOKENS = 16


def method(kind: str, steps: int = 8, **training: Any) -> Method:
    rows = {
        "sft": {"text": "dataset", "divergence": "cross_entropy"},
        "kd": {"text": "dataset", "divergence": "forward_kl", "divergence_weight": 0.5},
        "minillm": {
            "text": "rollouts",
            "divergence": "reverse_kl",
            "start": "initial",
            "policy": {"rollouts": 16, "inner_epochs": 2},
        },
    }
    common = {"learning_rate": 1e-3, "batch_size": 8, "steps": steps, "evaluate_every": 4}
    return Method.model_validate({**rows[kind], "training": {**common, **training}})


def settings(kind: str, architecture: str | None = "gpt2", seed: int = 1, **changes: Any) -> Train:
    return Train(
        role=kind,
        method=method(kind, **changes),
        architecture=ARCHITECTURES[architecture] if architecture else None,
        max_tokens=MAX_TOKENS,
        validation_prompts=6,
        seed=seed,
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "tokenizer": make_tokenizer(folder / "tokenizer"),
        "examples": make_examples(folder / "examples"),
        "plain_text": make_plain_text(folder / "plain_text", MAX_TOKENS),
    }


@pytest.fixture(scope="module")
def teacher(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    done = run_worker(write_job(folder, settings("sft", steps=30, learning_rate=1e-2), text_inputs(inputs)))
    assert done.returncode == 0, done.stderr
    return folder / "output"


def text_inputs(inputs: dict[str, Path], *names: str) -> dict[str, Path]:
    return {name: inputs[name] for name in ("tokenizer", "examples", *names)}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "output" / "model" / "model.safetensors")


def losses(folder: Path) -> dict[int, float]:
    return {step: v for step, name, v in read_metrics(folder / "output" / "metrics.jsonl") if name == "train/loss"}


def test_fine_tuning_learns_and_keeps_the_best_by_loss(inputs, tmp_path):
    long = settings("sft", steps=40, learning_rate=1e-2, select_by="validation_loss")
    assert run_worker(write_job(tmp_path, long, text_inputs(inputs))).returncode == 0
    record = json.loads((tmp_path / "output" / "selection.json").read_text())
    history = [entry["valid/loss"] for entry in record["history"]]
    assert record["value"] == min(history) < history[0]
    assert "valid/rouge_l" not in record["history"][0]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best/loss"] == record["value"]


def test_distilling_from_the_teacher_itself_starts_at_zero_divergence(teacher, inputs, tmp_path):
    same = {"weights": teacher, "teacher": teacher}
    first = settings("minillm", None, steps=4, learning_rate=1e-9)
    assert run_worker(write_job(tmp_path, first, {**text_inputs(inputs, "plain_text"), **same})).returncode == 0
    values = {name: v for _, name, v in read_metrics(tmp_path / "output" / "metrics.jsonl")}
    assert values["train/reverse_kl"] == pytest.approx(0.0, abs=1e-5)
    assert values["train/long_term"] == pytest.approx(0.0, abs=1e-5)
    assert values["train/importance_weight"] == pytest.approx(1.0, abs=1e-4)


def test_distillation_brings_the_student_closer_to_the_teacher(teacher, inputs, tmp_path):
    long = settings("minillm", "gpt2", seed=5, steps=120, learning_rate=5e-3)
    assert long.method.policy is not None
    alone = long.method.policy.model_copy(update={"plain_text_coefficient": 0.0})
    long = long.model_copy(update={"method": long.method.model_copy(update={"policy": alone})})
    done = run_worker(write_job(tmp_path, long, {**text_inputs(inputs), "teacher": teacher}))
    assert done.returncode == 0, done.stderr
    curve = [v for _, name, v in read_metrics(tmp_path / "output" / "metrics.jsonl") if name == "train/reverse_kl"]
    assert curve[-1] < 0.7 * curve[0], curve


@pytest.mark.parametrize("kind", ["sft", "minillm"])
def test_a_killed_run_continues_to_the_same_weights(kind, teacher, inputs, tmp_path):
    given = {**text_inputs(inputs, "plain_text"), "teacher": teacher} if kind == "minillm" else text_inputs(inputs)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    long = settings(kind, steps=40)
    assert run_worker(write_job(whole, long, given, checkpoint_every=3)).returncode == 0
    spec = write_job(killed, long, given, checkpoint_every=3)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=killed, stdout=subprocess.DEVNULL)
    wait_until(lambda: checkpoint_steps(killed)[-1:] >= [9])
    worker.kill()
    worker.wait()
    assert not (killed / "output" / "model").exists()
    done = run_worker(spec)
    assert done.returncode == 0, done.stderr
    assert "continuing from the checkpoint of step" in done.stdout
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(killed)[name]), name
    records = [json.loads((f / "output" / "selection.json").read_text()) for f in (whole, killed)]
    assert strip_times(records[0]) == strip_times(records[1])


def checkpoint_steps(folder: Path) -> list[int]:
    """Of the checkpoints that were written to their end."""
    return sorted(int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoints/step-*/checkpoint.json"))


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(damaged, inputs, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    long = settings("sft", steps=40)
    assert run_worker(write_job(whole, long, text_inputs(inputs), checkpoint_every=3)).returncode == 0
    spec = write_job(folder, long, text_inputs(inputs), checkpoint_every=3)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=folder, stdout=subprocess.DEVNULL)
    wait_until(lambda: checkpoint_steps(folder)[-1:] >= [9])
    worker.kill()
    worker.wait()
    steps = checkpoint_steps(folder)
    assert len(steps) == 2
    for number, step in enumerate(reversed(steps[-damaged:])):
        state = folder / "checkpoints" / f"step-{step:08d}" / "mp_rank_00_model_states.pt"
        data = state.read_bytes()
        state.write_bytes(data[:-100] if number == 0 else data[:-1] + bytes([data[-1] ^ 1]))
    cut_off = folder / "checkpoints" / "step-00000099"
    cut_off.mkdir()
    done = run_worker(spec)
    assert done.returncode == 0, done.stderr
    assert f"step-{steps[-1]:08d}: mp_rank_00_model_states.pt missing or altered; taking the one before" in done.stdout
    continued = f"continuing from the checkpoint of step {steps[0]}" in done.stdout
    assert continued == (damaged == 1), "with none whole it begins again"
    assert not cut_off.exists()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(folder)[name]), name


def strip_times(record: dict) -> dict:
    noisy = ("train/seconds_per_step", "train/loss", "train/gradient_norm")
    history = [{k: v for k, v in entry.items() if k.startswith("valid/") or k == "step"} for entry in record["history"]]
    return {**{k: v for k, v in record.items() if k not in noisy}, "history": history}


def test_sigterm_means_checkpoint_then_leave(inputs, tmp_path):
    spec = write_job(tmp_path, settings("sft", steps=5000), text_inputs(inputs), checkpoint_every=4000)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "output" / "metrics.jsonl").exists())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == STOPPED
    assert 0 < checkpoint_steps(tmp_path)[-1] < 4000


def wait_until(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_a_non_finite_loss_stops_and_names_step_and_rows(inputs, tmp_path):
    """With an absurd learning rate the weights overflow after some steps; the last checkpoint stays finite."""
    absurd = settings("sft", steps=50, learning_rate=1e18, weight_decay=0.0)
    done = run_worker(write_job(tmp_path, absurd, text_inputs(inputs), checkpoint_every=1))
    assert done.returncode == BAD_INPUT
    message = (tmp_path / "error.txt").read_text()
    assert "not finite at step" in message
    assert "training rows [" in message
    assert "Lower training.learning_rate" in message
    newest = tmp_path / "checkpoints" / f"step-{checkpoint_steps(tmp_path)[-1]:08d}"
    state = torch.load(newest / "mp_rank_00_model_states.pt", weights_only=False)
    assert all(value.isfinite().all() for value in state["module"].values())


@pytest.mark.parametrize("kind", ["sft", "minillm"])
def test_two_processes_train_as_one(kind, teacher, inputs, tmp_path):
    given = {**text_inputs(inputs, "plain_text"), "teacher": teacher} if kind == "minillm" else text_inputs(inputs)
    curves = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        quiet = without_dropout(settings(kind, steps=6))
        done = run_worker(write_job(folder, quiet, given, processes=processes), processes)
        assert done.returncode == 0, done.stderr[-3000:]
        history = json.loads((folder / "output" / "selection.json").read_text())["history"]
        curves.append([entry["valid/loss"] for entry in history])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_train_alike(stage, teacher, inputs, tmp_path):
    given = {**text_inputs(inputs, "plain_text"), "teacher": teacher}
    results = []
    for zero_stage, processes in ((0, 1), (stage, 2)):
        folder = tmp_path / str(zero_stage)
        job = write_job(folder, settings("minillm", steps=4), given, processes=processes, zero_stage=zero_stage)
        done = run_worker(job, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads((folder / "output" / "selection.json").read_text())["value"])
        assert weights(folder)
    assert results[1] == pytest.approx(results[0], abs=1e-3)


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
    given = {"zero_stage": zero_stage, "checkpoint_every": 3}
    spec = write_job(tmp_path, long_text(), text_inputs(inputs), processes=before, **given)
    worker = subprocess.Popen(
        worker_command(spec, before), env=worker_environment(before), cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    wait_until(lambda: checkpoint_steps(tmp_path)[-1:] >= [9])
    worker.terminate()
    worker.wait()
    assert not (tmp_path / "output" / "model").exists()
    done = run_worker(write_job(tmp_path, long_text(), text_inputs(inputs), processes=after, **given), after)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing from the checkpoint of step" in done.stdout
    assert ("put together" in done.stdout) == (zero_stage > 0)
    histories = [json.loads((f / "output" / "selection.json").read_text())["history"] for f in (undisturbed, tmp_path)]
    assert [h["valid/loss"] for h in histories[1]] == pytest.approx([h["valid/loss"] for h in histories[0]], rel=1e-4)


def test_another_zero_stage_in_the_middle_is_refused_with_the_remedy(inputs, tmp_path):
    spec = write_job(tmp_path, long_text(), text_inputs(inputs), checkpoint_every=3)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_until(lambda: checkpoint_steps(tmp_path)[-1:] >= [3])
    worker.terminate()
    worker.wait()
    done = run_worker(write_job(tmp_path, long_text(), text_inputs(inputs), zero_stage=2))
    assert done.returncode == BAD_INPUT
    assert "runtime.zero_stage is 2" in (tmp_path / "error.txt").read_text()


def test_micro_batches_and_checkpointed_activations_change_nothing(inputs, tmp_path):
    results = []
    for size, checkpointing in ((8, False), (2, False), (4, True)):
        folder = tmp_path / f"{size}{checkpointing}"
        sized = settings("sft", steps=6, gradient_checkpointing=checkpointing, select_by="validation_loss")
        assert (
            run_worker(write_job(folder, without_dropout(sized), text_inputs(inputs), micro_batch_size=size)).returncode
            == 0
        )
        results.append(json.loads((folder / "output" / "selection.json").read_text())["value"])
    assert results[1:] == pytest.approx(results[:1] * 2, rel=1e-5)


def without_dropout(stage: Train) -> Train:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return stage.model_copy(update={"architecture": {**ARCHITECTURES["gpt2"], **off}})


def test_bfloat16_trains(inputs, tmp_path):
    low = settings("sft", steps=20, precision="bfloat16", learning_rate=1e-2, select_by="validation_loss")
    assert run_worker(write_job(tmp_path, low, text_inputs(inputs))).returncode == 0
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.bfloat16}
    history = json.loads((tmp_path / "output" / "selection.json").read_text())["history"]
    assert history[-1]["valid/loss"] < history[0]["valid/loss"]


def test_seqkd_trains_on_the_text_of_the_teacher(inputs, tmp_path):
    """Responses that always say the same word teach exactly that."""
    responses = tmp_path / "responses"
    responses.mkdir()
    table = pd.read_parquet(inputs["examples"] / "train.parquet")
    table["response_ids"] = [[7, 0]] * len(table)
    table.to_parquet(responses / "responses.parquet")
    seqkd = settings("sft", steps=200, learning_rate=1e-2, select_by="validation_loss")
    done = run_worker(write_job(tmp_path, seqkd, {**text_inputs(inputs), "responses": responses}))
    assert done.returncode == 0, done.stderr
    curve = losses(tmp_path)
    assert curve[max(curve)] < 0.1
