"""Figures of rounds by hand, and trainings that collapse: flagged, or stopped at the weights from before."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm.config import Collapse
from minillm.errors import BAD_INPUT
from minillm.models.output_head import OutputHead
from minillm.objectives.agreement import agreement, entropy, top_overlap
from minillm.stages.training import Train
from minillm.training.collapse import COLLAPSED, CollapseWatch
from minillm.training.rounds import repeated_n_grams
from minillm.worker.progress import read_metrics
from tests.minillm.jobs import run_worker, worker_command, worker_environment, write_job
from tests.minillm.test_training import content
from tests.minillm.trainings import checkpoint_steps, settings, text_inputs, with_collapse
from tests.waiting import wait_for

SOUND = {
    "student_entropy": 1.0,
    "finished": 0.9,
    "length_ratio": 1.0,
    "repeated_4_grams": 0.1,
    "sampling_log_ratio": 1e-5,
}


def test_entropy_in_nats():
    probabilities = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125], [1.0, 0.0, 0.0, 0.0]])
    found = entropy(probabilities.log()).tolist()
    assert found == pytest.approx([math.log(4), 1.75 * math.log(2), 0.0])


def test_overlap_of_the_likeliest_tokens():
    student = torch.tensor([[9.0, 8.0, 1.0, 0.0]])
    teacher = torch.tensor([[0.0, 8.0, 9.0, 1.0]])
    assert [top_overlap(student, teacher, k).item() for k in (1, 2, 4, 9)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert top_overlap(student, teacher, 3).item() == pytest.approx(2 / 3)


def test_agreement_takes_hidden_states_through_both_heads():
    torch.manual_seed(1)
    states, wide = torch.randn(70, 4), torch.randn(70, 6)
    bias = torch.randn(9)
    head, other = OutputHead(torch.randn(11, 4), None, 9), OutputHead(torch.randn(9, 6), bias, 9)
    found = agreement(states, head, wide, other, temperature=0.5)
    student, teacher = states @ head.weight[:9].T / 0.5, (wide @ other.weight.T + bias) / 0.5
    for column, logits in enumerate((student, teacher)):
        log = logits.log_softmax(dim=-1)
        torch.testing.assert_close(found[:, column], -(log.exp() * log).sum(dim=-1))
    tops = [[set(row.topk(5).indices.tolist()) for row in logits] for logits in (student, teacher)]
    assert found[:, 2].tolist() == pytest.approx([len(a & b) / 5 for a, b in zip(*tops, strict=True)])
    assert agreement(states[:0], head, wide[:0], other, 1.0).shape == (0, 3)


@pytest.mark.parametrize(
    ("responses", "share"),
    [
        ([[1, 2, 3, 4, 1, 2, 3, 4]], 1 / 5),
        ([[7, 7, 7, 7, 7, 7, 7], [1, 2, 3], [1, 2, 3, 4, 5]], 3 / 6),
        ([[1, 2, 3, 4], [1, 2, 3, 4]], 0.0),
        ([[1, 2, 3], [0]], 0.0),
    ],
)
def test_repeated_4_grams_are_counted_within_a_response(responses: list[list[int]], share: float):
    assert repeated_n_grams(responses, 4) == pytest.approx(share)


def watched(limits: Collapse, *entropies: float) -> CollapseWatch:
    """Watch rounds of 10 steps whose students have these entropies."""
    watch = CollapseWatch(limits)
    for number, value in enumerate(entropies):
        watch.see(10 * number, {**SOUND, "student_entropy": value})
    return watch


def test_a_collapse_is_a_threshold_passed_in_so_many_rounds_in_a_row():
    limits = Collapse(least_student_entropy=0.5, patience=2, on_collapse="stop")
    assert watched(limits, 1.0, 0.4, 0.5, 0.4).first_bad == 0
    found = watched(limits, 1.0, 0.4, 0.6, 0.4, 0.3, 0.9)
    assert (found.first_bad, found.stopped, found.safe_step) == (4, True, 20)
    assert found.words == (
        "training collapsed from round 4 on (student_entropy 0.3, least 0.5); it was stopped after step 41, and its "
        "weights are the best up to step 20"
    )
    flagged = watched(limits.model_copy(update={"on_collapse": "flag"}), 1.0, 0.4, 0.4)
    assert (flagged.first_bad, flagged.stopped, flagged.safe_step) == (2, False, math.inf)
    assert flagged.words.endswith("it went on, so read its results with care")


@pytest.mark.parametrize(
    ("figure", "value"),
    [
        ("student_entropy", 0.009),
        ("finished", 0.01),
        ("length_ratio", 0.01),
        ("repeated_4_grams", 0.95),
        ("sampling_log_ratio", 6.0),
    ],
)
def test_every_figure_has_a_threshold_that_null_lifts(figure: str, value: float):
    side = "most" if value > SOUND[figure] else "least"
    for limits, first_bad in ((Collapse(), 1), (Collapse.model_validate({f"{side}_{figure}": None}), 0)):
        watch = CollapseWatch(limits)
        for step in range(3):
            watch.see(step, {**SOUND, figure: value})
        assert watch.first_bad == first_bad


FALLING: dict[str, Any] = {"least_student_entropy": 2.5, "patience": 5}
"""The student's entropy falls below this threshold as it learns what its teacher is sure of."""


def falling(**collapse: Any) -> Train:
    stage = settings("minillm", seed=5, steps=80, learning_rate=5e-3, select_by="validation_loss")
    return with_collapse(stage, **{**FALLING, **collapse})


def train(folder: Path, stage: Train, inputs: dict[str, Path], teacher: Path) -> dict[str, Any]:
    done = run_worker(write_job(folder, stage, {**text_inputs(inputs, "plain_text"), "teacher": teacher}))
    assert done.returncode == 0, done.stdout
    record = json.loads((folder / "output" / "selection.json").read_text(encoding="utf-8"))
    assert done.stdout.count("training collapsed") == 1
    assert json.loads((folder / "summary.json").read_text(encoding="utf-8"))["collapse"] == record["collapse"]
    return record


@pytest.fixture(scope="module")
def stopped(inputs, teacher, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stop")
    return folder, train(folder, falling(on_collapse="stop"), inputs, teacher)


def test_a_collapse_is_flagged_or_ends_the_training_at_weights_from_before(stopped, inputs, teacher, tmp_path):
    folder, stopped = stopped
    flagged = train(tmp_path / "flag", falling(), inputs, teacher)
    metrics = read_metrics(tmp_path / "flag" / "output" / "metrics.jsonl")
    (first_bad,) = {value for _, name, value in metrics if name == COLLAPSED}
    assert f"from round {first_bad:.0f} on" in flagged["collapse"]
    assert flagged["history"][-1]["step"] == 80
    # Rounds are of 4 steps: the last sound one before `first_bad` was sampled after this many.
    sound = 4 * (int(first_bad) - 2)
    (ended,) = checkpoint_steps(folder)[-1:]
    assert ended == sound + 4 * FALLING["patience"] + 1
    assert stopped["history"] == [of for of in flagged["history"] if of["step"] <= ended]
    before = [of for of in stopped["history"] if of["step"] <= sound]
    assert stopped["value"] == min(of["valid/loss"] for of in before)
    assert stopped["step"] <= sound < flagged["step"]


def test_a_killed_training_collapses_as_one_that_was_not(stopped, inputs, teacher, tmp_path):
    folder, record = stopped
    (ended,) = checkpoint_steps(folder)[-1:]
    given = {**text_inputs(inputs, "plain_text"), "teacher": teacher}
    spec = write_job(tmp_path, falling(on_collapse="stop"), given, checkpoint_every=2)
    with subprocess.Popen(worker_command(spec), env=worker_environment(), stdout=subprocess.DEVNULL) as worker:
        wait_for(lambda: checkpoint_steps(tmp_path)[-1:] >= [ended - 10])  # some of the bad rounds are behind it
        worker.kill()
    assert not (tmp_path / "output" / "model").exists()
    done = run_worker(spec)
    assert "continuing from the checkpoint of step" in done.stdout
    assert done.stdout.count(record["collapse"]) == 1
    assert content(tmp_path) == content(folder)


def test_processes_agree_on_a_collapse(stopped, inputs, teacher, tmp_path):
    folder, alone = stopped
    given = {**text_inputs(inputs, "plain_text"), "teacher": teacher}
    done = run_worker(write_job(tmp_path, falling(on_collapse="stop"), given, processes=2), 2)
    assert done.returncode == 0, done.stdout[-3000:]
    record = json.loads((tmp_path / "output" / "selection.json").read_text(encoding="utf-8"))
    assert done.stdout.count("training collapsed") == 1
    assert (record["step"], record["collapse"]) == (alone["step"], alone["collapse"])
    assert checkpoint_steps(tmp_path)[-1] == checkpoint_steps(folder)[-1]


def test_a_collapse_before_any_validation_is_an_error_with_its_remedy(inputs, teacher, tmp_path):
    stage = falling(on_collapse="stop", least_student_entropy=9.0)
    spec = write_job(tmp_path, stage, {**text_inputs(inputs, "plain_text"), "teacher": teacher})
    assert run_worker(spec).returncode == BAD_INPUT
    message = (tmp_path / "error.txt").read_text(encoding="utf-8")
    assert "minillm: training collapsed from round 1 on (student_entropy" in message
    assert "none had been validated: lower training.learning_rate" in message
    assert run_worker(spec).returncode == BAD_INPUT, "another attempt ends the same way"
