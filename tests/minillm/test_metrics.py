"""Metrics beside Rouge-L, by hand, and what configuration, documents and pages make of all of them."""

import re
from typing import Any, get_args

import pydantic
import pytest

from minillm.config import Fields, Metric, Scoring
from minillm.data.benchmarks import load_benchmarks
from minillm.errors import StageError
from minillm.metrics.by_name import METRICS_BY_NAME, further
from minillm.metrics.json_schema import check_schema, json_schema
from minillm.metrics.regex_group import regex_group
from minillm.patterns import without
from minillm.stages.measuring import Score
from minillm.stages.reading import Benchmarks
from tests.minillm.direct import ROOT, run_stage, write_lines

ANSWER = r"(?i)answer(?: is|:)\s*(-?[\w.]+)"
CARD: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


def test_a_group_is_compared_with_that_of_a_reference_or_the_reference():
    assert regex_group("So the answer is 42", ["The ANSWER: 42"], ANSWER) == 1.0
    assert regex_group("So the answer is 42", ["41", " 42\n"], ANSWER) == 1.0, "a bare reference is the answer"
    assert regex_group("42", ["42"], ANSWER) == 0.0, "not found in the response"
    assert regex_group("answer is 3", ["-3"], ANSWER) == 0.0, "punctuation counts"
    assert regex_group("answer is B. No, the answer is C", ["b."], ANSWER) == 1.0, "the first match, whatever its case"
    assert regex_group("answer is B. No, the answer is C", ["C"], ANSWER) == 0.0
    assert regex_group("ab", ["a"], "(a)b|(?:x)") == 1.0
    assert regex_group("x", ["x"], "(a)b|(?:x)") == 0.0, "a match with nothing in the group"
    with pytest.raises(ValueError, match="empty"):
        regex_group("answer is 42", [], ANSWER)


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ('{"name": "Ann", "age": 3}', 1.0),
        (' {"name": "Ann"}\n', 1.0),
        ('{"name": "Ann", "age": -1}', 0.0),
        ('{"name": "Ann", "age": 1.5}', 0.0),
        ('{"age": 3}', 0.0),
        ('{"name": "Ann"', 0.0),
        ('Here: {"name": "Ann"}', 0.0),
        ('```json\n{"name": "Ann"}\n```', 0.0),
        ('{"name": "Ann", "other": NaN}', 0.0),
        ("[" * 100_000, 0.0),
        ('{"name": "Ann", "other": ' + "1" * 5000 + "}", 0.0),
        ("", 0.0),
    ],
)
def test_json_is_valid_as_a_whole_and_against_the_schema(response, value):
    assert json_schema(response, ["not read"], CARD) == value


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "'objekt' is not valid"),
        ({"$ref": "#/$defs/none"}, "'#/\\$defs/none', which is not in it"),
        ({"anyOf": [{"$ref": "https://example.com/schema.json"}]}, "nothing is fetched"),
    ],
)
def test_a_schema_is_whole(schema, message):
    with pytest.raises(ValueError, match=message):
        check_schema(schema)
    nested = {"$id": "http://a/b", "$defs": {"c": {"$id": "c", "$defs": {"d": {}}, "$ref": "#/$defs/d"}}, "$ref": "c"}
    assert check_schema(nested) is nested, "a reference is looked up from where it stands"


def test_a_search_without_end_ends(monkeypatch):
    monkeypatch.setattr("minillm.patterns.SECONDS", 0.1)
    for search in (
        lambda: regex_group("a" * 60 + "b", ["a"], "^((?:a|aa)+)$"),
        lambda: without("^(a|aa)+$", "a" * 60 + "b"),
    ):
        with pytest.raises(StageError, match=r"searched for 0\.1 s in a text of 61 characters that begins 'aaa"):
            search()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "regex"}, "metric regex needs `pattern`"),
        ({"metric": "regex", "pattern": "(a"}, r"'\(a' is no regular expression: missing \)"),
        ({"metric": "regex", "pattern": "a*(b?)"}, "matches the empty text"),
        ({"metric": "regex", "pattern": "ab"}, "has 0 groups"),
        ({"metric": "regex", "pattern": "(a)(b)"}, "has 2 groups"),
        ({"pattern": "(a)"}, "metric rouge_l does not read `pattern`; leave it out, or set metric: regex"),
        ({"metric": "regex", "pattern": "(a)", "json_schema": {}}, "does not read `json_schema`"),
        ({"metric": "json_schema", "json_schema": {"type": 1}}, "it is no JSON schema"),
    ],
)
def test_what_a_metric_cannot_use_is_refused(given, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        Scoring(**given)


def test_every_metric_is_in_the_table_the_documents_and_tracking():
    assert list(METRICS_BY_NAME) == list(get_args(Metric)) == list(Score.shown)
    assert len({metric.title for metric in METRICS_BY_NAME.values()}) == len(METRICS_BY_NAME)
    assert {metric.reads for metric in METRICS_BY_NAME.values()} - {None} <= set(Scoring.model_fields)
    table = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("### Metrics")[1].split("###")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert rows == [(name, metric.title) for name, metric in METRICS_BY_NAME.items()]


RIGHT_AND_WRONG = {
    "rouge_l": ("the red cat", "a dog", None),
    "rouge_l_characters": ("東京", "大阪", None),
    "exact_match": ("Yes.", "no", None),
    "regex": ("answer: 4", "answer: 5", ANSWER),
    "json_schema": ('{"name": "Ann"}', "{}", CARD),
}


@pytest.mark.parametrize("name", METRICS_BY_NAME)
def test_of_every_metric_more_is_better(name):
    right, wrong, given = RIGHT_AND_WRONG[name]
    rest = further(name, {"pattern": given, "json_schema": given})
    assert METRICS_BY_NAME[name].compare(right, [right], *rest) == 1.0
    assert METRICS_BY_NAME[name].compare(wrong, [right], *rest) == 0.0


def read(folder, rows, fields: Fields, **scoring: Any) -> list[dict[str, Any]]:
    stage = Benchmarks(fields={"a": fields}, topics={}, scoring={"a": Scoring(**scoring)})
    return load_benchmarks(run_stage(stage, {"benchmark/a": write_lines(folder / "a.jsonl", rows)}, folder / "run")[0])[
        "a"
    ]


def test_a_row_has_its_own_schema_or_that_of_the_benchmark(tmp_path):
    rows = [
        {"instruction": "i", "output": "3", "schema": '{"type": "integer"}'},
        {"instruction": "i", "output": "[]", "schema": {"type": "array"}},
        {"instruction": "i", "output": '{"name": "Ann"}', "schema": None},
    ]
    found = read(tmp_path, rows, Fields(), metric="json_schema", json_schema=CARD)
    assert [row["json_schema"] for row in found] == [{"type": "integer"}, {"type": "array"}, CARD]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "{}"}, r":1: no schema in `json_schema`; give one to each row, or to all"),
        ({"output": "{}", "schema": "{"}, r":1: `schema` cannot be read: not JSON"),
        (
            {"output": "{}", "schema": '{"type": "object", "type": "array"}'},
            ":1: `schema` cannot be read: `type` is given twice",
        ),
        ({"output": "{}", "schema": 3}, r":1: `schema` is int, not an object"),
        ({"output": "{}", "schema": {"type": 3}}, r":1: `schema`: it is no JSON schema"),
        ({"output": "{}", "schema": CARD}, r":1: the reference '{}' is not valid .* 'name' is a required property"),
        ({"output": "Ann", "schema": CARD}, r":1: the reference 'Ann' is not valid .* not JSON"),
    ],
)
def test_a_row_whose_references_fit_no_schema_is_refused(tmp_path, row, message):
    with pytest.raises(StageError, match=message):
        read(tmp_path, [{"instruction": "i", **row}], Fields(), metric="json_schema")


def test_how_often_a_pattern_is_found_in_the_references_is_told(tmp_path, capsys):
    rows = [{"instruction": "i", "output": ["The answer is 4", "4"]}, {"instruction": "i", "output": "5"}]
    read(tmp_path, rows, Fields(), metric="regex", pattern=ANSWER)
    assert "benchmark a: the pattern is found in 1 of 3 references" in capsys.readouterr().out
