"""Calibration on multiple choice with known probabilities, by real workers of one process or two."""

import json
from pathlib import Path

import numpy as np
import pytest

from minillm.config import MultipleChoice, Source, Template
from minillm.evaluation.calibration import judge, measure
from minillm.stages.measuring import Calibration
from minillm.stages.reading import Questions
from tests.minillm.direct import PLAIN, alone, read_lines, run_stage, write_lines
from tests.minillm.jobs import make_constant_model, make_tokenizer, run_worker, write_job
from tests.minillm.models_in_small import small_model

STAGE = Calibration(role="sft", sets=("words",), precision="float32")


def make_inputs(folder: Path, rows: list[dict], model: Path | None = None) -> dict[str, Path]:
    """Make a set of words to choose from, read by its stage, and a model to ask."""
    tokenizer = make_tokenizer(folder / "tokenizer")
    stage = Questions(
        sets={"words": MultipleChoice(source=Source(path="x"))},
        template=Template(**PLAIN),
        max_prompt_tokens=8,
        long_prompts="refuse",
        max_tokens=16,
    )
    sources = {"calibration/words": write_lines(folder / "words.jsonl", rows), "tokenizer": tokenizer}
    questions, _ = run_stage(stage, sources, folder / "questions")
    model = model or make_constant_model(folder / "model", {"red": 0.4, "blue": 0.2, "cat": 0.1})
    return {"model": model, "tokenizer": tokenizer, "questions": questions}


def row(choices: list[str], answer: int) -> dict:
    return {"question": "say the " + " ".join(["bird"] * (1 + answer)), "choices": choices, "answer": answer}


def run(folder: Path, inputs: dict[str, Path], micro_batch_size: int = 2) -> tuple[Path, dict]:
    with alone():
        return run_stage(STAGE, inputs, folder, micro_batch_size=micro_batch_size)


def test_a_model_with_known_probabilities(tmp_path):
    rows = [row(["red", "blue"], 0), row(["red", "blue cat"], 1), row(["cat", "blue", "red red"], 2)]
    output, summary = run(tmp_path / "run", make_inputs(tmp_path, rows))
    lines = read_lines(output / "words.jsonl")
    # red 0.4 to blue 0.2; red 0.4 to blue·cat 0.02; cat 0.1 to blue 0.2 to red·red 0.16
    wanted = [[2 / 3, 1 / 3], [0.4 / 0.42, 0.02 / 0.42], [0.1 / 0.46, 0.2 / 0.46, 0.16 / 0.46]]
    for line, probabilities in zip(lines, wanted, strict=True):
        assert line["probabilities"] == pytest.approx(probabilities, rel=1e-5)
    assert [(line["index"], line["predicted"], line["answer"]) for line in lines] == [(0, 0, 0), (1, 0, 1), (2, 1, 2)]
    assert summary["accuracy/words"] == pytest.approx(100 / 3)
    # three bins with one prediction each: |1 − 2/3|, |0 − 0.952|, |0 − 0.435|
    error = (1 / 3 + 0.4 / 0.42 + 0.2 / 0.46) / 3
    assert summary["ece/words"] == pytest.approx(error, rel=1e-5)
    measured = json.loads((output / "calibration.json").read_text(encoding="utf-8"))["words"]
    assert (measured["prompts"], measured["ece"]["value"]) == (3, pytest.approx(error, rel=1e-5))
    assert np.sum(measured["bins"], axis=1) == pytest.approx([3, 2 / 3 + 0.4 / 0.42 + 0.2 / 0.46, 1], rel=1e-5)


def test_processes_and_batches_change_nothing(tmp_path):
    small_model("gpt2", vocabulary=16).save_pretrained(tmp_path / "random")
    draw = np.random.default_rng(0)
    words = np.array(["red", "blue", "cat", "dog runs", "the bird sleeps", "a green dog"])
    rows = [row(draw.permutation(words)[: 2 + number % 3].tolist(), number % 2) for number in range(9)]
    inputs = make_inputs(tmp_path, rows, tmp_path / "random")
    spec = write_job(tmp_path / "two", STAGE, inputs, micro_batch_size=4)
    done = run_worker(spec, processes=2)
    assert done.returncode == 0, done.stdout[-3000:]
    by_two = read_lines(tmp_path / "two" / "output" / "words.jsonl")
    one, many = (read_lines(run(tmp_path / f"run-{size}", inputs, size)[0] / "words.jsonl") for size in (1, 64))
    assert {line["predicted"] for line in one} >= {0, 1}
    for line, *others in zip(one, many, by_two, strict=True):
        wanted = {**line, "probabilities": pytest.approx(line["probabilities"], abs=1e-5)}
        assert others == [wanted, wanted]


def test_a_set_asked_before_a_failure_is_not_asked_again(tmp_path):
    inputs = make_inputs(tmp_path, [row(["red", "blue"], 0)])
    kept = [{"index": 0, "answer": 0, "predicted": 1, "probabilities": [0.25, 0.75]}]
    (tmp_path / "run" / "output").mkdir(parents=True)
    write_lines(tmp_path / "run" / "output" / "words.jsonl", kept)
    _, summary = run(tmp_path / "run", inputs)
    assert summary == {"accuracy/words": 0.0, "ece/words": 0.75}


def test_choices_belong_to_their_row():
    rows = [
        {"index": 4, "answer": 0, "choices": ["a", "b"]},
        {"index": 7, "answer": 1, "choices": ["a", "b", "c"]},
    ]
    log_probs = np.log([0.3, 0.1, 0.02, 0.05, 0.03]).tolist()
    first, second = judge(rows, log_probs)
    assert first == {"index": 4, "answer": 0, "predicted": 0, "probabilities": pytest.approx([0.75, 0.25])}
    assert second == {"index": 7, "answer": 1, "predicted": 1, "probabilities": pytest.approx([0.2, 0.5, 0.3])}


def test_very_unlikely_choices_keep_their_ratio():
    (line,) = judge([{"index": 0, "answer": 0, "choices": ["a", "b"]}], [-2000.0, -2000.0 - np.log(3)])
    assert line["probabilities"] == pytest.approx([0.75, 0.25])


def test_intervals_are_over_prompts_and_need_some():
    line = {"answer": 0, "predicted": 0, "probabilities": [0.75, 0.25]}
    assert measure([line])["accuracy"] == {"value": 100.0, "interval": [None, None]}
    found = measure([{**line, "predicted": int(number < 50)} for number in range(200)])
    assert found["accuracy"]["value"] == 75.0
    low, high = found["accuracy"]["interval"]
    assert (low, high) == (pytest.approx(69, abs=1), pytest.approx(81, abs=1))  # ± 1.96·√(0.75·0.25/200)
    assert found["ece"]["value"] == pytest.approx(0.0, abs=1e-12), "right in 75 % where sure by 75 %"
