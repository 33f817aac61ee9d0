"""Weights are kept by the best metric, then the loss, then the earliest step; never weights without a figure."""

import math
from pathlib import Path

import pytest

from minillm.errors import StageError
from minillm.store.manifest import MANIFEST, Manifest, read_manifest, seal
from minillm.training.checkpoint_record import RECORD, CheckpointRecord, read_record
from minillm.training.selection import Selection


def selection(metric: str, *figures: tuple[float, float]) -> Selection:
    """Return a selection after validations at steps 100, 200 …, with a loss and a score each."""
    history = [
        {"step": 100 * number, "valid/loss": loss, f"valid/{metric}": score}
        for number, (loss, score) in enumerate(figures, start=1)
    ]
    return Selection(Path(), metric, history)


def by_loss(*losses: float) -> Selection:
    history = [{"step": 100 * number, "valid/loss": loss} for number, loss in enumerate(losses, start=1)]
    return Selection(Path(), "validation_loss", history)


@pytest.mark.parametrize("metric", ["rouge_l", "rouge_l_characters"])
def test_the_highest_score_is_kept_whatever_the_loss(metric):
    assert selection(metric, (2.0, 30.0), (3.0, 40.0), (1.0, 35.0)).best["step"] == 200


def test_the_lowest_loss_is_kept():
    assert by_loss(3.0, 1.0, 2.0).best["step"] == 200


def test_equal_scores_go_to_the_lower_loss_and_equal_losses_to_the_earlier_step():
    found = selection("rouge_l", (4.0, 0.0), (3.0, 0.0), (2.0, 0.0), (2.0, 0.0))
    assert found.best["step"] == 300
    assert [of["step"] for of in found.equal] == [100, 200, 400]
    assert by_loss(2.0, 1.0, 1.0).best["step"] == 200
    assert selection("rouge_l", (4.0, 1.0), (3.0, 0.0)).equal == []


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_validation_without_a_figure_is_never_the_best(lost, place):
    losses = [1.0, 2.0, 3.0]
    losses[place] = lost
    assert by_loss(*losses).best["valid/loss"] == min(loss for loss in losses if math.isfinite(loss))
    scores = [(1.0, 30.0), (1.0, 20.0), (1.0, 10.0)]
    scores[place] = (1.0, lost)
    best = max(score for _, score in scores if math.isfinite(score))
    assert selection("rouge_l", *scores).best["valid/rouge_l"] == best
    scores[place] = (lost, 50.0)
    assert selection("rouge_l", *scores).best["valid/rouge_l"] == best, "weights without a loss answer by accident"


def test_without_any_figure_nothing_is_selected():
    with pytest.raises(StageError, match="none of the 2 validations has a finite valid/rouge_l and loss"):
        _ = selection("rouge_l", (math.nan, 0.0), (math.inf, 0.0)).best


def test_the_log_tells_ties_and_figures_that_are_none():
    history = [(math.nan, 0.0), (4.0, 0.0), (3.0, 0.0), (2.0, 1.0)]
    remarks = [selection("rouge_l", *history[:number]).remark() for number in (1, 2, 3, 4)]
    assert remarks == [
        "step 100: valid/rouge_l is 0.0, valid/loss is nan; such weights are not selected",
        "",
        "step 300: valid/rouge_l 0 is the best so far and not alone; the weights of step 300 are kept, for the "
        "lower loss or else for being the earliest",
        "",
    ]


def test_a_resumed_training_knows_a_validation_without_a_figure(tmp_path):
    history = selection("rouge_l", (math.nan, 10.0), (2.0, 30.0), (math.inf, -math.inf)).history
    record = CheckpointRecord(step=300, processes=1, zero_stage=0, selection={"history": history}, files={})
    (tmp_path / RECORD).write_text(seal(record.model_dump(mode="json")), encoding="utf-8")
    resumed = Selection(tmp_path, "rouge_l", read_record(tmp_path).selection["history"])
    assert resumed.best == {"step": 200, "valid/loss": 2.0, "valid/rouge_l": 30.0}
    assert [type(of["step"]) for of in resumed.history] == [int] * 3
    assert math.isnan(resumed.history[0]["valid/loss"])
    assert resumed.history[2]["valid/rouge_l"] == -math.inf


def test_a_manifest_keeps_numbers_that_are_none(tmp_path):
    manifest = Manifest(kind="train", key="k", created=0.0, config={"reached": math.nan}, files={})
    (tmp_path / MANIFEST).write_text(seal(manifest.model_dump(mode="json")), encoding="utf-8")
    assert math.isnan(read_manifest(tmp_path).config["reached"])
