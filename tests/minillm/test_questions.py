"""Multiple-choice sets in every shape of the real files are read; questions that cannot be asked are refused."""

import json

import pytest
from pydantic import ValidationError

from minillm.config import MultipleChoice, QuestionFields, Source, Template
from minillm.data.questions import read_questions
from minillm.errors import StageError
from minillm.evaluation.responses import read_rows
from minillm.models.tokenizers_bpe import train_bpe
from minillm.stages.reading import Questions
from tests.minillm.direct import PLAIN, real_data, run_stage, write_lines

ARC = {
    "question": "Which is oldest?",
    "choices": {"text": ["radio", "wheel", "train"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
MMLU = {"subject": "s", "question": "1 + 1?", "choices": ["3", "4", "2"], "answer": 2}
REAL = {
    "arc_easy_validation": (QuestionFields(answer="answerKey"), 570, {3, 4, 5}),
    "arc_challenge_validation": (QuestionFields(answer="answerKey"), 299, {3, 4, 5}),
    "hellaswag_validation_1000": (QuestionFields(question="query", answer="gold"), 1000, {4}),
    "mmlu_validation_1000": (QuestionFields(), 1000, {3, 4}),
    "mmlu_dev": (QuestionFields(), 285, {3, 4}),
}


def record(**values):
    return MultipleChoice.model_validate({"source": {"path": "x"}, **values})


def read(folder, rows, **values):
    return read_questions("x", write_lines(folder / "x.jsonl", rows), record(**values))


def settings(**values):
    fixed = {"template": Template(**PLAIN), "max_prompt_tokens": 60, "long_prompts": "refuse", "max_tokens": 80}
    return Questions.model_validate({"sets": {"x": record()}, **fixed, **values})


def run(folder, rows, **values):
    train_bpe([], 257).save_pretrained(folder / "tokenizer")
    inputs = {"calibration/x": write_lines(folder / "x.jsonl", rows), "tokenizer": folder / "tokenizer"}
    output, summary = run_stage(settings(**values), inputs, folder / "run")
    return read_rows(output, "x"), summary


@pytest.mark.parametrize(
    ("row", "values", "choices", "answer"),
    [
        (ARC, {"fields": {"answer": "answerKey"}}, ["radio", "wheel", "train"], 1),
        (MMLU, {}, ["3", "4", "2"], 2),
        ({**MMLU, "choices": ["2", "1", "0"], "answer": 0}, {}, ["2", "1", "0"], 0),
        ({**MMLU, "answer": "2"}, {}, ["3", "4", "2"], 2),
        ({"query": "It", "endings": [" rains.", "shines. "], "label": "1"},
         {"fields": {"question": "query", "choices": "endings", "answer": "label"}}, ["rains.", "shines."], 1),
        ({"question": "Is it?", "passage": "It is.", "answer": True},
         {"fields": {"context": "passage"}, "choices": ["no", "yes"]}, ["no", "yes"], 1),
        ({"sentence": "Fine!", "label": 0},
         {"fields": {"context": "sentence", "answer": "label"}, "instruction": "How is it?",
          "choices": ["negative", "positive"]}, ["negative", "positive"], 0),
        ({**MMLU, "choices": ["12", "-4", "4", "12"], "answer": 3}, {}, ["12", "-4", "4"], 0),
    ],
    ids=["labels", "number", "number of another", "text", "number as text", "true", "classes", "a choice twice"],
)  # fmt: skip
def test_every_shape_of_row(tmp_path, row, values, choices, answer):
    (got,) = read(tmp_path, [row], **values)
    assert (got["choices"], got["answer"]) == (choices, answer)


def test_the_prompt_is_the_runs_template_around_the_records_instruction(tmp_path):
    row = {"question": "is {context} it?", "passage": "p", "answer": 0}
    sets = {"x": record(instruction="Read. {question}?", fields={"context": "passage"}, choices=["no", "yes"])}
    (got,), summary = run(tmp_path, [row], sets=sets)
    assert got["prompt"] == "Read. is {context} it??|p>"
    assert summary == {"x": 1.0, "cut_prompts/x": 0.0}
    tokenizer = train_bpe([], 257)
    assert tokenizer.decode(got["prompt_ids"]) == got["prompt"]
    assert [tokenizer.decode(choice) for choice in got["choice_ids"]] == ["no", "yes"]


def test_some_of_the_rows_are_spread_over_the_set(tmp_path):
    rows = [{**MMLU, "question": f"question {number}"} for number in range(10)]
    assert [row["index"] for row in read(tmp_path, rows, prompts=4)] == [0, 2, 5, 7]
    assert len(read(tmp_path, rows, prompts=11)) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, r"x\.jsonl:1: `answer` 3 is none of the 3 choices; give its text, or its number from 0"),
        ({"answer": -1}, "`answer` -1 is none of the 3 choices"),
        ({"answer": 1.5}, "`answer` 1.5 is none"),
        ({"answer": None}, "`answer` None is none"),
        ({"answer": "B"}, "`answer` 'B' is none"),
        (
            {"choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answer": "0"},
            "'0' is no label of a choice; there are A, B",
        ),
        ({"choices": {"text": ["a", "b"], "label": ["A"]}}, "a `text` and a `label` for each choice"),
        ({"choices": []}, "x.*:1: `answer` 2 is none of the 0 choices"),
        ({"choices": ["a"], "answer": 0}, "fewer than two different choices"),
        ({"choices": ["a", "a"], "answer": 0}, "fewer than two different choices"),
        ({"choices": ["a", " "]}, "`choices` is empty"),
        ({"choices": ["a", 5]}, "`choices` is int, not text"),
        ({"choices": "ab"}, "`choices` is str, not a list of texts"),
        ({"question": " "}, "`question` is empty"),
    ],
)
def test_a_row_that_cannot_be_asked_or_judged_is_refused_by_file_line_and_field(tmp_path, change, message):
    with pytest.raises(StageError, match=message) as refusal:
        read(tmp_path, [{**MMLU, **change}])
    assert str(refusal.value).startswith("calibration x, ")


@pytest.mark.parametrize("missing", ["question", "choices", "answer"])
def test_a_field_that_is_not_there_is_named(tmp_path, missing):
    with pytest.raises(StageError, match=f"no field `{missing}`"):
        read(tmp_path, [{name: value for name, value in MMLU.items() if name != missing}])


def test_a_set_without_rows_and_one_that_is_no_json_are_refused(tmp_path):
    with pytest.raises(StageError, match=r"calibration x: .* has no rows; mend the file or leave the set out"):
        read(tmp_path, [])
    (tmp_path / "x.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(StageError, match=r"calibration x, .*x\.jsonl:1: not JSON"):
        read_questions("x", tmp_path / "x.jsonl", record())


def test_what_does_not_fit_is_refused_or_cut(tmp_path):
    long = {**MMLU, "question": "why " * 20}
    with pytest.raises(StageError, match=r"calibration x: 1 prompts are longer than 60 tokens.*max_prompt_tokens"):
        run(tmp_path / "a", [MMLU, long])
    rows, summary = run(tmp_path / "b", [MMLU, long], long_prompts="cut")
    assert [len(row["prompt_ids"]) for row in rows] == [7, 60]
    assert summary["cut_prompts/x"] == 1.0
    with pytest.raises(StageError, match="a choice of row 1 has 21 tokens, but only 20 fit behind a prompt"):
        run(tmp_path / "c", [MMLU, {**MMLU, "choices": ["a", "b", "c" * 21]}])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choices": ["yes"]}, "at least 2 items"),
        ({"choices": ["yes", " "]}, "must be different texts, none of them blank"),
        ({"choices": ["yes", "yes"]}, "must be different texts"),
        ({"choices": ["a", "b"], "fields": {"choices": "endings"}}, "fields.choices is not read"),
        ({"instruction": "How is it?"}, "every prompt would be the same"),
        ({"instruction": "How?", "fields": {"context": "c", "question": "q"}}, "fields.question is not read"),
        ({"fields": {"answr": "a"}}, "Extra inputs"),
    ],
)
def test_a_record_that_means_nothing_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        record(**values)


@pytest.mark.parametrize("name", REAL)
def test_the_real_sets_read_whole(name):
    fields, count, sizes = REAL[name]
    path = real_data() / "downstream" / f"{name}.jsonl"
    rows = read_questions(name, path, MultipleChoice(source=Source(path="x"), fields=fields))
    assert len(rows) == count
    assert {len(row["choices"]) for row in rows} == sizes
    assert {row["answer"] for row in rows} >= {0, 1, 2, 3}
    for row, line in zip(rows, path.open(encoding="utf-8"), strict=True):
        raw = json.loads(line)
        choices, answer = raw["choices"], raw[fields.answer]
        right = choices["text"][choices["label"].index(answer)] if isinstance(choices, dict) else choices[answer]
        assert row["choices"][row["answer"]] == right.strip()
