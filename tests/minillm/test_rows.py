from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm.config import Template
from minillm.config.data import RowFields
from minillm.data.rows import Malformed, Row, read_examples, read_split, refuse_malformed
from minillm.data.text_template import fill
from minillm.errors import StageError
from tests.minillm.direct import PLAIN, read_lines, real_data, write_lines

MALFORMED = {
    b'{"instruction": "a", "response"': "not JSON",
    b'["a", "b"]': "not an object but list",
    b'{"response": "b"}': "no field `instruction`",
    b'{"instruction": "a"}': "no field `response`",
    b'{"instruction": " ", "response": "b"}': "`instruction` is empty",
    b'{"instruction": "a", "response": "\\n"}': "`response` is empty",
    b'{"instruction": 3, "response": "b"}': "`instruction` is int, not text",
    b'{"instruction": "a", "response": null}': "`response` is NoneType, not text",
    b'{"instruction": "a", "context": ["x"], "response": "b"}': "`context` is list, not text",
    b'{"instruction": "caf\xe9", "response": "b"}': "not UTF-8 (byte 0xe9 at column 21)",
    b'{"instruction": "a", "response": "\\ud83d."}': "half a character: \\ud83d is one of a surrogate pair",
    b'{"instruction": "a", "response": "b", "x": {"\\uDE00": 1}}': "half a character: \\ude00",
    b'{"instruction": "a", "response": "b", "response": "c"}': "`response` is given twice",
    b"[" * 100_000: "nested too deeply",
    b'{"instruction": "a", "response": ' + b"1" * 5000 + b"}": "a number of 5,000 digits, too many to read",
    b'{"instruction": "a", "response": "b"} {}': "not JSON (Extra data",
}


def sorted_out(path: Path) -> tuple[list[Row], list[Malformed]]:
    found = list(read_examples(path, RowFields()))
    rows = [row for row in found if isinstance(row, Row)]
    return rows, [row for row in found if isinstance(row, Malformed)]


def test_each_malformed_row_is_listed_with_line_and_reason_and_keeps_its_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*MALFORMED, b"", b'{"instruction": "a", "response": "b"}']))
    rows, malformed = sorted_out(path)
    line = len(MALFORMED) + 2
    assert rows == [Row(len(MALFORMED), "a", "", "b", "none", file=str(path), line=line)]
    assert [(m.row, m.line) for m in malformed] == [(i, i + 1) for i in range(len(MALFORMED))]
    for found, reason in zip(malformed, MALFORMED.values(), strict=True):
        assert found.reason.startswith(reason)
        assert found.file == str(path)


def test_context_may_be_absent_null_or_blank_and_alpaca_names_do_as_well(tmp_path):
    values = [
        {"instruction": "a", "response": "b", "category": "open_qa"},
        {"instruction": "a", "context": None, "response": "b"},
        {"instruction": "a", "input": "c", "output": "b", "category": ""},
    ]
    rows, malformed = sorted_out(write_lines(tmp_path / "rows.jsonl", values))
    assert not malformed
    assert [(r.context, r.response, r.category) for r in rows] == [
        ("", "b", "open_qa"),
        ("", "b", "none"),
        ("c", "b", "none"),
    ]


def test_too_many_malformed_rows_stop_the_run_and_the_first_ten_are_shown(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{}] * 11 + [{"instruction": "a", "response": "b"}] * 89)
    _, malformed = sorted_out(path)
    refuse_malformed(malformed, 100, 0.11)
    with pytest.raises(
        StageError, match=r"11 of 100 rows are malformed \(11\.0%\), above data\.max_malformed"
    ) as error:
        refuse_malformed(malformed, 100, 0.10)
    assert str(error.value).count("no field `instruction`") == 10
    assert f"{path}:10: no field" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"row": 0, "split": "trian"}], r":1: unknown part 'trian'; did you mean `train`\?"),
        ([{"row": 2, "split": "train"}], ":1: row 2 is not one of the 2 rows"),
        ([{"row": "first", "split": "train"}], ":1: row 'first' is not one of"),
        ([{"row": True, "split": "train"}], ":1: row True is not one of"),
        ([{"row": 0, "split": "train"}] * 2, ":2: row 0 has a part already"),
        ([{"row": 1, "split": "train"}], r"names no part for 1 of 2 rows, first \[0\]"),
        ([{"row": 0}], ":1: needs the fields `row` and `split`"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(tmp_path, rows, message):
    with pytest.raises(StageError, match=message):
        read_split(write_lines(tmp_path / "split.jsonl", rows), 2)


def test_the_split_is_by_row_not_by_line(tmp_path):
    path = write_lines(tmp_path / "s.jsonl", [{"row": 1, "split": "dev"}, {"row": 0, "split": "unused"}])
    assert read_split(path, 2) == ["unused", "dev"]


def test_braces_in_the_data_are_text():
    template = Template(**PLAIN)
    assert fill(template, "use {context} and {x}", "{instruction}") == "use {context} and {x}|{instruction}>"
    assert fill(template, "a", " \n") == "a>"


def test_the_template_is_the_one_of_the_published_prompts():
    for row in read_lines(real_data() / "dolly" / "minillm_test_500.jsonl"):
        assert fill(Template(), row["instruction"], row["input"]) == row["prompt"]


def test_the_real_dolly_is_whole():
    folder = real_data() / "dolly"
    rows, malformed = sorted_out(folder / "databricks-dolly-15k.jsonl")
    assert (len(rows), len(malformed)) == (15011, 0)
    parts = read_split(folder / "minillm_split.jsonl", 15011)
    assert {part: parts.count(part) for part in set(parts)} == {"train": 11417, "dev": 997, "test": 497, "unused": 2100}


def test_the_first_name_with_a_value_counts(tmp_path):
    """Rows merged from two sources have the field names of both, one of them empty."""
    values = [
        {"instruction": "a", "context": None, "input": "c", "response": "b", "output": None},
        {"instruction": "a", "context": " ", "input": "c", "response": "", "output": "b"},
        {"instruction": "a", "context": "c", "input": None, "response": "b", "output": "other"},
        {"instruction": "a", "context": None, "input": None, "response": "b"},
        {"instruction": "a", "context": "c", "input": "", "response": None, "output": None},
    ]
    rows, malformed = sorted_out(write_lines(tmp_path / "rows.jsonl", values))
    assert [(r.context, r.response) for r in rows] == [("c", "b")] * 3 + [("", "b")]
    assert [m.reason for m in malformed] == ["`response` is NoneType, not text"]


CALLER = {"role": "user", "content": "Weather?"}


def talk(**arguments: object) -> dict[str, Any]:
    """Return a row that ends with a call of a tool."""
    call = {"function": {"name": "weather", "arguments": arguments}}
    return {"messages": [CALLER, {"role": "assistant", "content": None, "tool_calls": [call]}]}


def test_fields_that_only_other_rows_of_a_table_have_are_not_in_its_calls_and_tools(tmp_path):
    """A table has the fields of all rows in each, as nulls, so that a call would have arguments that nobody gave."""
    city, day = {"city": {"type": "string"}}, {"day": {"type": "string", "enum": ["today", None]}}
    values = [
        {**talk(city="Rome", days=[]), "tools": [{"name": "weather", "parameters": city}]},
        {**talk(day="today", days=[None, "x"]), "tools": [{"name": "weather", "parameters": day}]},
        {"messages": [CALLER, {"role": "assistant", "content": "Sunny."}], "tools": None},
    ]
    pq.write_table(pa.Table.from_pylist(values), tmp_path / "rows.parquet")
    rows, malformed = sorted_out(tmp_path / "rows.parquet")
    assert not malformed
    found = [row.conversation for row in rows if row.conversation is not None]
    assert [of.tools for of in found] == [
        ({"name": "weather", "parameters": city},),
        ({"name": "weather", "parameters": day},),
        None,
    ]
    calls = [of.messages[1]["tool_calls"][0]["function"]["arguments"] for of in found[:2]]
    assert calls == [{"city": "Rome", "days": []}, {"day": "today", "days": [None, "x"]}]
    assert found[2].messages == (CALLER, {"role": "assistant", "content": "Sunny."})
    lines, _ = sorted_out(write_lines(tmp_path / "rows.jsonl", [talk(city="Rome", day=None)]))
    assert lines[0].messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome", "day": None}, "as given"


def test_a_date_in_a_call_of_a_table_is_malformed(tmp_path):
    pq.write_table(pa.Table.from_pylist([talk(day=date(2026, 1, 2))]), tmp_path / "rows.parquet")
    _, malformed = sorted_out(tmp_path / "rows.parquet")
    assert [m.reason for m in malformed] == [
        "message 2: a tool call is not JSON: Object of type date is not JSON serializable; write it as text or a number"
    ]


def test_the_format_is_that_of_the_first_row_with_values(tmp_path):
    values = [
        {"messages": [], "instruction": "", "response": ""},
        {"messages": None, "instruction": "a", "response": "b"},
        {"messages": [CALLER], "instruction": "c", "response": "d"},
    ]
    rows, malformed = sorted_out(write_lines(tmp_path / "rows.jsonl", values))
    assert [(row.instruction, row.response) for row in rows] == [("a", "b"), ("c", "d")]
    assert [m.reason for m in malformed] == ["`instruction` is empty"]
    path = write_lines(tmp_path / "talks.jsonl", [{"messages": []}, talk(), {"conversations": [["human"]]}])
    rows, malformed = sorted_out(path)
    assert len(rows) == 1
    assert [m.reason for m in malformed] == ["`messages` is no list of messages", "no field `messages`"]


def test_fields_that_are_named_are_read_whatever_others_there_are(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b", "messages": [CALLER]}])
    (row,) = read_examples(path, RowFields(instruction="prompt", response="completion"))
    assert isinstance(row, Row)
    assert (row.instruction, row.response, row.conversation) == ("a", "b", None)


def test_a_split_may_be_a_csv_file(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text("row,split\n1,dev\n0,train\n", encoding="utf-8")
    assert read_split(path, 2) == ["train", "dev"]
