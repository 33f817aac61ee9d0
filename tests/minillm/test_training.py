"""The trainer as a real worker process: every architecture, every method, death and resumption."""

import json
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from minillm.errors import BAD_INPUT, STOPPED
from minillm.store.artifacts import CLOCKED
from minillm.store.file_versions import file_sha256
from minillm.store.manifest import seal
from minillm.training.checkpoint_record import RECORD, CheckpointRecord, newest_step, newest_whole, read_record
from minillm.worker.progress import read_metrics
from tests.minillm.jobs import run_worker, worker_command, worker_environment, write_job
from tests.minillm.trainings import checkpoint_steps, losses, settings, text_inputs, weights, without_dropout
from tests.waiting import wait_for


def test_fine_tuning_learns_and_keeps_the_best_by_loss(inputs, tmp_path):
    long = settings("sft", steps=40, learning_rate=1e-2, select_by="validation_loss")
    assert run_worker(write_job(tmp_path, long, text_inputs(inputs))).returncode == 0
    record = json.loads((tmp_path / "output" / "selection.json").read_text(encoding="utf-8"))
    history = [entry["valid/loss"] for entry in record["history"]]
    assert record["value"] == min(history) < history[0]
    assert "valid/rouge_l" not in record["history"][0]
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
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
    assert done.returncode == 0, done.stdout
    curve = [v for _, name, v in read_metrics(tmp_path / "output" / "metrics.jsonl") if name == "train/reverse_kl"]
    assert curve[-1] < 0.7 * curve[0], curve


def test_the_student_is_asked_for_more_text_where_the_validation_loss_has_risen(teacher, inputs, tmp_path):
    sampled = {}
    for rate in (1e-9, 0.3):
        folder = tmp_path / str(rate)
        given = {**text_inputs(inputs, "plain_text"), "teacher": teacher}
        done = run_worker(
            write_job(folder, settings("distillm", steps=24, learning_rate=rate, evaluate_every=1), given)
        )
        assert done.returncode == 0, done.stdout
        metrics = list(read_metrics(folder / "output" / "metrics.jsonl"))
        losses = [value for _, name, value in metrics if name == "valid/loss"]
        assert (max(losses) > losses[0] + 0.1) == (rate > 0.1), losses
        sampled[rate] = [step for step, name, _ in metrics if name == "train/response_tokens"]
    assert sampled[1e-9] == []
    assert sampled[0.3], "figures of rounds are told every few seconds, but none is lost"
    assert sampled[0.3][0] > 2, "the loss rises after the first validation"


@pytest.mark.parametrize(
    ("kind", "rate", "limit"),
    [("sft", 1e-3, {}), ("minillm", 1e-3, {"micro_batch_tokens": 40}), ("distillm", 0.3, {})],
)
def test_a_killed_run_continues_to_the_same_weights(kind, rate, limit, teacher, inputs, tmp_path):
    given = text_inputs(inputs) if kind == "sft" else {**text_inputs(inputs, "plain_text"), "teacher": teacher}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    long = settings(kind, steps=40, learning_rate=rate, evaluate_every=2)
    assert run_worker(write_job(whole, long, given, checkpoint_every=3, **limit)).returncode == 0
    spec = write_job(killed, long, given, checkpoint_every=3, **limit)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=killed, stdout=subprocess.DEVNULL)
    wait_for(lambda: checkpoint_steps(killed)[-1:] >= [9])
    worker.kill()
    worker.wait()
    assert not (killed / "output" / "model").exists()
    done = run_worker(spec)
    assert done.returncode == 0, done.stdout
    assert "continuing from the checkpoint of step" in done.stdout
    assert content(whole) == content(killed)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(damaged, inputs, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    long = settings("sft", steps=40)
    assert run_worker(write_job(whole, long, text_inputs(inputs), checkpoint_every=3)).returncode == 0
    spec = write_job(folder, long, text_inputs(inputs), checkpoint_every=3)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=folder, stdout=subprocess.DEVNULL)
    # Only the last two checkpoints are kept: an older one is deleted once the newest is on disk.
    wait_for(lambda: checkpoint_steps(folder)[-1:] >= [9] and len(checkpoint_steps(folder)) == 2)
    worker.send_signal(signal.SIGSTOP)
    steps = checkpoint_steps(folder)
    worker.kill()
    worker.wait()
    for number, step in enumerate(reversed(steps[-damaged:])):
        state = folder / "checkpoints" / f"step-{step:08d}" / "mp_rank_00_model_states.pt"
        data = state.read_bytes()
        state.write_bytes(data[:-100] if number == 0 else data[:-1] + bytes([data[-1] ^ 1]))
    cut_off = folder / "checkpoints" / "step-00000099"
    cut_off.mkdir()
    done = run_worker(spec)
    assert done.returncode == 0, done.stdout
    assert f"step-{steps[-1]:08d}: mp_rank_00_model_states.pt missing or altered; taking the one before" in done.stdout
    continued = f"continuing from the checkpoint of step {steps[0]}" in done.stdout
    assert continued == (damaged == 1), "with none whole it begins again"
    assert not cut_off.exists()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(folder)[name]), name


def content(folder: Path) -> dict[str, str]:
    """Return checksums of the files that the artifact's digest covers, which do not depend on time or place."""
    files = [path for path in (folder / "output").rglob("*") if path.is_file() and path.name not in CLOCKED]
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


@pytest.fixture(scope="module")
def two_steps(inputs, tmp_path_factory) -> Path:
    """Train two steps, with a checkpoint, in a folder whose name is full of special characters."""
    folder = tmp_path_factory.mktemp("a?b#c%20d[e]*f\n g") / "[w]*?"
    done = run_worker(write_job(folder, settings("sft", steps=2), text_inputs(inputs), checkpoint_every=1))
    assert done.returncode == 0, done.stdout
    return folder


def test_a_path_is_a_path_and_never_a_pattern(two_steps, inputs):
    done = run_worker(write_job(two_steps, settings("sft", steps=4), text_inputs(inputs), checkpoint_every=1))
    assert done.returncode == 0, done.stdout
    assert "continuing from the checkpoint of step 2" in done.stdout
    assert checkpoint_steps(two_steps) == [3, 4]


def test_code_in_a_checkpoint_is_refused_and_not_run(two_steps, inputs, tmp_path):
    class Malice:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copytree(two_steps, tmp_path / "train")
    (newest,) = sorted((tmp_path / "train" / "checkpoints").glob("step-*"))[-1:]
    state = newest / "mp_rank_00_model_states.pt"
    torch.save({"module": Malice()}, state)
    record = read_record(newest)
    whole = record.model_copy(update={"files": record.files | {state.name: file_sha256(state)}})
    (newest / RECORD).write_text(seal(whole.model_dump(mode="json")), encoding="utf-8")
    spec = write_job(tmp_path / "train", settings("sft", steps=6), text_inputs(inputs))
    assert run_worker(spec).returncode == BAD_INPUT
    assert "holds more than data, which is never run" in (tmp_path / "train" / "error.txt").read_text(encoding="utf-8")
    assert not (tmp_path / "ran").exists()


def test_every_damage_to_the_record_of_a_checkpoint_is_noticed(tmp_path):
    for step in (1, 2):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "state").write_text("state", encoding="utf-8")
        digest = file_sha256(folder / "state")
        record = CheckpointRecord(
            step=step, processes=1, zero_stage=0, selection={"history": []}, files={"state": digest}
        )
        (folder / RECORD).write_text(seal(record.model_dump(mode="json")), encoding="utf-8")
    assert newest_whole(tmp_path) == "step-00000002"
    path = tmp_path / "step-00000002" / RECORD
    whole, draw = path.read_bytes(), random.Random(1)
    flipped = [bytes([*whole[:at], whole[at] ^ 1 << draw.randrange(8), *whole[at + 1 :]]) for at in range(len(whole))]
    for damaged in (*flipped, *(whole[:at] for at in range(len(whole))), b"[]", b"null", b'{"files": []}'):
        path.write_bytes(damaged)
        assert newest_whole(tmp_path) == "step-00000001", damaged
        assert newest_step(tmp_path) == 1


def test_sigterm_means_checkpoint_then_leave(inputs, tmp_path):
    spec = write_job(tmp_path, settings("sft", steps=5000), text_inputs(inputs), checkpoint_every=4000)
    worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "output" / "metrics.jsonl").exists())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == STOPPED
    assert 0 < checkpoint_steps(tmp_path)[-1] < 4000


def test_a_worker_waits_until_that_of_an_earlier_attempt_has_left(inputs, tmp_path):
    spec = write_job(tmp_path, settings("sft", steps=5000), text_inputs(inputs), checkpoint_every=4000)
    command, options = worker_command(spec), {"env": worker_environment(), "cwd": tmp_path, "text": True}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
    wait_for(lambda: (tmp_path / "output" / "metrics.jsonl").exists())
    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **options)
    assert second.stdout is not None
    assert "an earlier attempt is still leaving" in second.stdout.readline()
    assert first.poll() is None
    first.terminate()
    first.wait(60)
    (left_at,) = checkpoint_steps(tmp_path)
    assert f"continuing from the checkpoint of step {left_at}" in second.stdout.readline()
    second.terminate()
    second.wait(60)
    assert checkpoint_steps(tmp_path)[-1] > left_at


def test_a_non_finite_loss_stops_and_names_step_and_rows(inputs, tmp_path):
    """With an absurd learning rate the weights overflow after some steps; the last checkpoint stays finite."""
    absurd = settings("sft", steps=50, learning_rate=1e18, weight_decay=0.0)
    done = run_worker(write_job(tmp_path, absurd, text_inputs(inputs), checkpoint_every=1))
    assert done.returncode == BAD_INPUT
    message = (tmp_path / "error.txt").read_text(encoding="utf-8")
    assert "not finite at step" in message
    assert "training rows [" in message
    assert "Lower training.learning_rate" in message
    newest = tmp_path / "checkpoints" / f"step-{checkpoint_steps(tmp_path)[-1]:08d}"
    state = torch.load(newest / "mp_rank_00_model_states.pt", weights_only=False)
    assert all(value.isfinite().all() for value in state["module"].values())


def test_micro_batches_and_checkpointed_activations_change_nothing(inputs, tmp_path):
    results = []
    for size, checkpointing in ((8, False), (2, False), (4, True)):
        folder = tmp_path / f"{size}{checkpointing}"
        sized = settings("sft", steps=6, gradient_checkpointing=checkpointing, select_by="validation_loss")
        assert (
            run_worker(write_job(folder, without_dropout(sized), text_inputs(inputs), micro_batch_size=size)).returncode
            == 0
        )
        results.append(json.loads((folder / "output" / "selection.json").read_text(encoding="utf-8"))["value"])
    assert results[1:] == pytest.approx(results[:1] * 2, rel=1e-5)


def test_bfloat16_trains(inputs, tmp_path):
    low = settings("sft", steps=20, precision="bfloat16", learning_rate=1e-2, select_by="validation_loss")
    assert run_worker(write_job(tmp_path, low, text_inputs(inputs))).returncode == 0
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.bfloat16}
    history = json.loads((tmp_path / "output" / "selection.json").read_text(encoding="utf-8"))["history"]
    assert history[-1]["valid/loss"] < history[0]["valid/loss"]


def test_seqkd_trains_on_the_text_of_the_teacher(inputs, tmp_path):
    """Responses that always say the same word teach exactly that."""
    responses = tmp_path / "responses"
    responses.mkdir()
    table = pd.read_parquet(inputs["examples"] / "train.parquet")
    table["response_ids"] = [[7, 0]] * len(table)
    table["turns"] = [[{"start": 0, "end": 2}]] * len(table)
    table.to_parquet(responses / "responses.parquet")
    seqkd = settings("sft", steps=200, learning_rate=1e-2, select_by="validation_loss")
    done = run_worker(write_job(tmp_path, seqkd, {**text_inputs(inputs), "responses": responses}))
    assert done.returncode == 0, done.stdout
    curve = losses(tmp_path)
    assert curve[max(curve)] < 0.1
