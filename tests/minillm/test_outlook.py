"""What a plan says of a distillation: figures by hand, on models of fixed probabilities, and the verdict."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from minillm.config import Runtime, Template
from minillm.evaluation.uncertainty import Estimate
from minillm.files import write_json
from minillm.models.causal_lm import load_model
from minillm.models.shared_tokenizer import load_shared_tokenizer, share
from minillm.planning.outlook import Pair, metric_for, token_figures
from minillm.planning.outlook_figures import Figures, OwnWays, figures
from minillm.planning.own_ways import own_ways
from minillm.planning.row_words import rows_words
from minillm.planning.verdict import (
    DISAPPOINTS,
    NO_HELP,
    UNKNOWN,
    WORKS,
    Subject,
    figures_table,
    verdict,
    verdict_words,
)
from minillm.stages.measuring import Outlook
from tests.minillm.direct import group_of_one
from tests.minillm.jobs import WORDS, make_constant_model, make_tokenizer
from tests.minillm.templates import INSTRUCTIONS, TURNS, save_chat_tokenizer

CAT, DOG = (2 + WORDS.index(word) for word in ("cat", "dog"))
FITTING = Figures(
    rows=32,
    loss={"teacher": 2.0, "student": 2.5},
    loss_gain=Estimate(0.5, 0.4, 0.6),
    score={"teacher": 20.0, "student": 14.0},
    score_gain=Estimate(6.0, 2.0, 10.0),
    length={"teacher": 1.1, "student": 1.2},
    longest={"teacher": 1.1, "student": 1.2},
    cut={"teacher": 0.0, "student": 0.1},
    stopped={"teacher": 0.0, "student": 0.0},
    end={"teacher": 0.5, "student": 0.4},
    entropy={"teacher": 1.0, "student": 1.5},
    shared={1: 0.6, 5: 0.7, 20: 0.7},
    mass={"teacher": {1: 0.4, 5: 0.7, 20: 0.8}, "student": {1: 0.4, 5: 0.6, 20: 0.8}},
)
FINAL = {"teacher": Subject(True, True, OwnWays(template="same")), "student": Subject(True, True, None)}
LONG = replace(
    FITTING,
    score={"teacher": 8.7, "student": 10.9},
    score_gain=Estimate(-2.2, -5.0, 0.6),
    length={"teacher": 3.8, "student": 1.2},
    longest={"teacher": 5.0, "student": 1.3},
    stopped={"teacher": 0.9, "student": 0.1},
)
"""The teacher predicts better and writes far too long: SmolLM2-135M-Instruct on Dolly."""


ALL_STOPPED = {"teacher": 1.0, "student": 1.0}


def outlook(**changes: Any) -> Outlook:
    return Outlook(template=Template(), metric=None, max_tokens=32, **changes)


def test_figures_of_two_rows_by_hand():
    first = {"tokens": 2.0, "teacher_loss": 2.0, "student_loss": 4.0, "teacher_response": 4.0, "student_response": 2.0}
    other = {
        "tokens": 8.0,
        "teacher_loss": 13.0,
        "student_loss": 6.0,
        "teacher_response": 72.0,
        "student_response": 2.0,
    }
    same = {f"{name}_entropy": 5.0 for name in ("teacher", "student")}
    same |= {f"{name}_{figure}": 0.5 for name in ("teacher", "student") for figure in ("end", "cut", "stopped")}
    same |= {"teacher_longest": 8.0, "student_longest": 2.0}
    same |= {f"{of}_{k}": 3.0 for of in ("shared", "teacher_mass", "student_mass") for k in (1, 5, 20)}
    scores = [{"teacher_score": 10.0, "student_score": 20.0}, {"teacher_score": 30.0, "student_score": 25.0}]
    found = figures([{**first, **same, **scores[0]}, {**other, **same, **scores[1]}])
    assert found.loss == {"teacher": 1.5, "student": 1.0}
    assert found.loss_gain == Estimate(-0.5, None, None, 1.0), "two rows have no interval"
    assert (found.score, found.score_gain.value) == ({"teacher": 20.0, "student": 22.5}, -2.5)
    assert found.length["teacher"] == pytest.approx(math.sqrt(2 * 9))
    assert found.length["student"] == pytest.approx(math.sqrt(1 / 4))
    assert found.longest["teacher"] == pytest.approx(math.sqrt(4 * 1))
    assert found.entropy == {"teacher": 1.0, "student": 1.0}
    assert found.shared[5] == found.mass["student"][20] == pytest.approx(0.6)
    assert (found.cut["teacher"], found.end["student"]) == (0.5, 0.5)


def test_token_figures_by_hand():
    teacher, student = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.2, 0.3, 0.5]]).log()
    found = {name: value.item() for name, value in token_figures(teacher, student, torch.tensor([1])).items()}
    assert found["teacher_loss"] == found["student_loss"] == pytest.approx(-math.log(0.3))
    assert (found["shared_1"], found["shared_20"]) == (0, 1)
    assert found["student_mass_1"] == pytest.approx(0.2), "of the student, on the teacher's top"
    assert found["teacher_mass_5"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a teacher that says cat and a student that says cat or dog, each of fixed probability."""
    folder = tmp_path_factory.mktemp("pair")
    shared = load_shared_tokenizer(make_tokenizer(folder / "tokenizer"))
    laws = {"teacher": {"cat": 0.9}, "student": {"cat": 0.4, "dog": 0.45}}
    models = {name: load_model(make_constant_model(folder / name, law)).eval() for name, law in laws.items()}
    return Pair(models, shared, outlook(), "rouge_l", Runtime(micro_batch_size=2), answer_tokens=32)


def test_models_of_fixed_probabilities_have_the_figures_computed_by_hand(pair: Pair):
    rows = [((0,), "cat", [2, 3], [CAT, 0]), ((1,), "cat cat", [2], [CAT, CAT, 0]), ((2,), "dog", [4, 5, 6], [DOG, 0])]
    table = pd.DataFrame(rows, columns=["place", "response", "prompt_ids", "response_ids"])
    records = pair.measure(table)
    rest = 0.1 / 15  # of the teacher, for each of the other 15 tokens
    assert [record["tokens"] for record in records] == [2, 3, 2]
    assert records[1]["teacher_loss"] == pytest.approx(-2 * math.log(0.9) - math.log(rest), rel=1e-4)
    assert records[2]["student_loss"] == pytest.approx(-math.log(0.45) - math.log(0.15 / 14), rel=1e-4)
    assert records[0]["teacher_end"] == pytest.approx(rest, rel=1e-4)
    assert records[0]["teacher_entropy"] / 2 == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(rest), rel=1e-4)
    assert [record["shared_1"] for record in records] == [0, 0, 0]
    assert records[1]["student_mass_1"] / 3 == pytest.approx(0.4, rel=1e-4)
    for record, prompt in zip(records, table["prompt_ids"], strict=True):
        assert record["teacher_cut"] == (record["teacher_response"] == 32 - len(prompt))
    many = [((3,), "cat " * 20, [2], [CAT] * 20 + [0])]
    (record,) = pair.measure(pd.DataFrame(many, columns=table.columns))
    # of 31 words about 28 and 12 are cats: F = 2 · 20 / (31 + 20) and 2 · 12 / (31 + 20)
    assert record["teacher_score"] == pytest.approx(100 * 40 / 51, abs=6)
    assert record["student_score"] == pytest.approx(100 * 24 / 51, abs=15)


def test_an_answer_that_is_stopped_early_is_at_least_so_long(pair: Pair):
    rows = [((0,), "cat", [2] * 28, [CAT] * 3 + [0]), ((1,), "cat", [2], [CAT] * 30 + [0])]
    table = pd.DataFrame(rows, columns=["place", "response", "prompt_ids", "response_ids"])
    for record, left in zip(replace(pair, answer_tokens=4).measure(table), (4, 31), strict=True):
        assert record["teacher_response"] == 4, "it hardly ever ends"
        assert (record["teacher_cut"], record["teacher_stopped"]) == ((1, 0) if left == 4 else (0, 1))
        assert record["teacher_longest"] == left


def test_thoughts_are_not_compared(pair: Pair):
    rows = [((0,), "cat dog", [2], [CAT, DOG, 0])]
    table = pd.DataFrame(rows, columns=["place", "response", "prompt_ids", "response_ids"])
    exact = replace(pair, metric="exact_match")
    assert exact.measure(table)[0]["teacher_score"] == 0
    (record,) = replace(exact, settings=outlook(strip=r".+")).measure(table)
    assert record["teacher_score"] == 100, "nothing is left of both"


def test_rows_are_shared_among_workers_and_measured_while_there_is_time(pair: Pair):
    rows = [((row,), "cat", [2] * (1 + row), [CAT] * (10 - row) + [0]) for row in range(10)]
    table = pd.DataFrame(rows, columns=["place", "response", "prompt_ids", "response_ids"])
    second = replace(pair, settings=outlook(part=1, parts=2))
    with group_of_one():
        whole, half, begun = pair.compare(table, 4, 60.0), second.compare(table, 4, 60.0), pair.compare(table, 4, 0.0)
    assert sorted(record["tokens"] for record in whole) == list(range(2, 12))
    assert sorted(record["tokens"] for record in half) == [2, 4, 6, 8, 10], "every other row"
    assert sorted(record["tokens"] for record in begun) == [2, 5, 8, 11], "short and long ones, and then no more"


def test_the_first_metric_that_sees_the_references_scores():
    assert metric_for(["a cat", "two dogs"]) == "rouge_l"
    assert metric_for(["東京の猫", "犬"]) == "rouge_l_characters"


@pytest.mark.parametrize(
    ("own", "template", "found"),
    [
        (TURNS, Template(), "same"),
        (INSTRUCTIONS, Template(), "different"),
        (INSTRUCTIONS, Template(system="Be brief."), "different"),  # which it refuses
        (None, Template(), "absent"),
        (TURNS, Template(without_context="{instruction}\n", with_context="{instruction} {context}\n"), "unused"),
    ],
)
def test_a_models_own_template_against_that_of_the_rows(
    own: str | None, template: Template, found: str, tmp_path: Path
):
    run = load_shared_tokenizer(save_chat_tokenizer(tmp_path / "run", TURNS))
    directory = save_chat_tokenizer(tmp_path / "model", own or TURNS)
    if own is None:
        (directory / "chat_template.jinja").unlink()
    ends = [run.tokenizer.get_vocab()[name] for name in ("<|end|>", "</s>")]
    write_json(directory / "generation_config.json", {"eos_token_id": ends[1]})
    ways = own_ways(directory, share(run.tokenizer, ends), template, ends)
    assert ways == OwnWays(template=found, missing_ends=("<|end|>",))  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    assert own_ways(tmp_path / "empty", run, template, ends) is None


@pytest.mark.parametrize(
    ("of", "changes", "said", "reason"),
    [
        (FITTING, {}, WORKS, None),
        (LONG, {}, NO_HELP, "rouge_l is 8.7, the student's 10.9"),
        (LONG, {"length": {"teacher": 1.5, "student": 1.2}}, DISAPPOINTS, "not better than the student"),
        (FITTING, {"score_gain": Estimate(-3.0, -5.0, -1.0)}, NO_HELP, "not better than the student"),
        (FITTING, {"score_gain": Estimate(0.0, None, None), "loss_gain": Estimate(0.0, None, None)}, NO_HELP, "not"),
        (FITTING, {"score_gain": Estimate(1.0, -2.0, 4.0)}, WORKS, None),
        (
            FITTING,
            {"score_gain": Estimate(1.0, -2.0, 4.0), "loss_gain": Estimate(0.1, -0.1, 0.3)},
            DISAPPOINTS,
            "not clearly better",
        ),
        (FITTING, {"loss_gain": Estimate(-0.5, -0.6, -0.4)}, DISAPPOINTS, "predicts the rows worse"),
        (FITTING, {"length": {"teacher": 0.4}, "longest": {"teacher": 0.4}}, DISAPPOINTS, "0.4 times as long"),
        # References of 300 tokens, and answers that are stopped after 128 of the 400 that they may have.
        (FITTING, {"length": {"teacher": 0.43}, "longest": {"teacher": 1.3}, "stopped": ALL_STOPPED}, WORKS, None),
        (FITTING, {"length": {"teacher": 2.0}, "stopped": ALL_STOPPED}, DISAPPOINTS, "at least 2.0 times as long"),
        (FITTING, {"cut": {"teacher": 0.6, "student": 0.7}}, DISAPPOINTS, "60\u00a0% of the teacher's responses"),
        (FITTING, {"cut": {"teacher": 0.1, "student": 0.7}}, DISAPPOINTS, "70\u00a0% of the student's responses"),
        (FITTING, {"stopped": {"teacher": 0.1, "student": 0.6}}, DISAPPOINTS, "70\u00a0% of the student's responses"),
        (FITTING, {"mass": {**FITTING.mass, "student": {1: 0.1, 5: 0.2, 20: 0.3}}}, DISAPPOINTS, "only 30\u00a0%"),
    ],
)
def test_the_verdict_of_models_as_they_will_be(of: Figures, changes: dict[str, Any], said: str, reason: str | None):
    found, reasons = verdict(replace(of, **changes), FINAL, "rouge_l")
    assert found == said
    if reason is None:
        assert reasons == []
    else:
        assert any(reason in finding.reason for finding in reasons)


def test_a_teacher_that_talks_long_is_to_be_fine_tuned():
    as_it_comes = {**FINAL, "teacher": Subject(False, True, OwnWays(template="same"))}
    words = verdict_words(LONG, as_it_comes, "rouge_l")
    assert words.startswith("Will it work? **It cannot help**\n")
    assert "- the teacher's responses are at least 3.8 times as long as the references" in words
    assert "fine-tune it on the rows (teacher.training)" in words
    assert "−2.2 [−5.0, +0.6]" in figures_table(LONG, "rouge_l")


def test_what_holds_only_until_a_model_is_fine_tuned_is_no_reason():
    poor = replace(FITTING, mass={**FITTING.mass, "student": {1: 0.0, 5: 0.0, 20: 0.0}})
    made_of_layers = {**FINAL, "student": Subject(False, False, OwnWays(template="absent"))}
    assert verdict(poor, made_of_layers, "rouge_l") == (UNKNOWN, [])
    assert "provisional: the student will be fine-tuned first" in verdict_words(poor, made_of_layers, "rouge_l")
    assert verdict(LONG, made_of_layers, "rouge_l")[0] == NO_HELP, "the student will only become better"
    later = {**FINAL, "teacher": Subject(False, False, OwnWays(template="unused", missing_ends=("</s>",)))}
    assert verdict(LONG, later, "rouge_l") == (UNKNOWN, [])
    assert "nothing else speaks against it" not in verdict_words(LONG, later, "rouge_l"), "most answers do not end"


@pytest.mark.parametrize(
    ("ways", "reason", "change"),
    [
        (OwnWays(template="unused"), "it brings a chat template", "set data.template: chat"),
        (OwnWays(template="different"), "writes prompts in another way", "fine-tune the teacher"),
        (OwnWays(template="same", missing_ends=("<|end|>",)), "rows end with '<|end|>'", "data.template"),
    ],
)
def test_a_teacher_that_was_made_for_another_template_may_disappoint(ways: OwnWays, reason: str, change: str):
    said, (found,) = verdict(FITTING, {**FINAL, "teacher": Subject(False, True, ways)}, "rouge_l")
    assert said == DISAPPOINTS
    assert reason in found.reason
    assert change in found.change


def test_rows_are_shown_with_invisible_characters_and_without_their_middle(tmp_path: Path):
    dropped = {"reason": ["duplicate", "prompt too long", "prompt with response too long", "total"]}
    pd.DataFrame(dropped | {"total": [5, 2, 1, 8]}).to_csv(tmp_path / "dropped.csv", index=False)
    summary = {"format": "messages", "rows": 100.0, "train": 80.0, "validation": 12.0}
    shown = [[("Prompt", "user:\n\x1b[2J?\n"), ("Learnt", "x" * 500), ("End", "</s>")]]
    words = rows_words(tmp_path, summary, {"cut_prompts/a": 2.0, "cut_prompts/b": 1.0}, shown)
    assert "Rows (messages): 80 to train on, 12 to validate; 3 rows of 100 (3\u00a0%) dropped as too long" in words
    assert "3 benchmark prompts cut" in words
    assert r"prompt 'user:\n\x1b[2J?\n'" in words
    assert f"learnt '{'x' * 120}' … 260 characters … '{'x' * 120}'" in words
    assert "end    '</s>'" in words
