"""Data files of every format and name are read; messages say what is wrong with the others."""

import csv
import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm.config import Data, Model, Runtime, Source, Study, Tokenizer
from minillm.config.loading import load_config, named_models
from minillm.data import json_rows, records
from minillm.data.documents import read_documents
from minillm.data.sources import resolve
from minillm.data.tables import read_records
from minillm.errors import ConfigError, StageError
from minillm.files import read_json_lines
from tests.minillm.direct import write_lines

WORDS = ["NA", "None", "null", "nan", "007", "True", "1e5", "", " x", "2024-01-01", 'say "so"', "two\nlines", "a,b"]
ROWS = [{"instruction": "a", "response": "b"}]
NAMES = ("glob[1]", "a*b", "what?", "a#b", "a%20b", "a::b", "zip:c", "~", "[nlp]", "{x}", "naïve é", " ", "-x", "$HOME")


def values(path: Path) -> list[Any]:
    return [record.value for record in read_records(path)]


def test_fields_of_a_csv_file_are_text_as_written(tmp_path):
    path = tmp_path / "words.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([["word", "number"], *([word, "1"] for word in WORDS)])
    assert values(path) == [{"word": word, "number": "1"} for word in WORDS]
    pq.write_table(pa.table({"word": WORDS}), tmp_path / "words.parquet")
    assert values(tmp_path / "words.parquet") == [{"word": word} for word in WORDS]


def test_a_csv_row_with_another_number_of_fields_is_malformed_and_the_others_count(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n3\n\n4,5,6\n7,8\n", encoding="utf-8")
    found = [(r.line, r.value, r.problem) for r in read_records(path)]
    assert found == [
        (1, {"a": "1", "b": "2"}, None),
        (2, None, "1 fields under 2 names of columns"),
        (3, None, "3 fields under 2 names of columns"),
        (4, {"a": "7", "b": "8"}, None),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,b\n1,"2\n3,4\n', r"rows\.csv:3 is not CSV \(unexpected end of data\)"),
        (b"a,a\n1,2\n", r"rows\.csv has two columns `a`"),
        (b"a,b\n1,caf\xe9\n", r"rows\.csv is not UTF-8: byte 0xe9 at position 9; save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), r"rows\.csv is not UTF-8: byte 0xff at position 0"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_named_with_the_place(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(StageError, match=message):
        values(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["rows.jsonl", "rows.json", "rows.parquet", "rows.csv", "rows.arrow"])
def test_a_path_is_a_path_and_never_a_pattern(tmp_path, monkeypatch, name, form):
    suffix = form.split(".")[1]
    writers: dict[str, Callable[[Path], object]] = {
        "jsonl": lambda path: write_lines(path, ROWS),
        "json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8"),
        "parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
        "csv": lambda path: path.write_text("instruction,response\na,b\n", encoding="utf-8"),
        "arrow": lambda path: write_arrow(path, ROWS),
    }
    folder = tmp_path / name
    folder.mkdir()
    (tmp_path / "glob1.jsonl").write_text("{}", encoding="utf-8")
    for path in (folder / form, tmp_path / f"{name}.{suffix}"):
        writers[suffix](path)
        assert values(path) == ROWS
        monkeypatch.chdir(path.parent)
        assert values(Path(path.name)) == ROWS
    if suffix != "json":  # a folder may have other JSON files beside its rows
        assert values(folder) == ROWS
    assert values(resolve(Source(path=f"{tmp_path}/{name}", file=form), Path()).path) == ROWS


def write_arrow(path: Path, rows: list[dict[str, str]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_what_save_to_disk_wrote_loads(tmp_path):
    rows = [{"instruction": f"é {i}", "response": "b"} for i in range(200)]
    table = datasets.Dataset.from_list(rows)
    table.select(range(100, 200)).save_to_disk(tmp_path / "half", num_shards=3)
    assert values(tmp_path / "half") == rows[100:]
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(tmp_path / "both")
    with pytest.raises(StageError, match=r"holds .*test/.*; name the file or folder to read with `file`"):
        values(tmp_path / "both")
    assert values(resolve(Source(path="both", file="train"), tmp_path).path) == rows


def test_shards_of_one_split_are_read_in_order_and_nothing_hidden(tmp_path):
    for number in (1, 0):
        rows = [{"i": number}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"train-0000{number}-of-00002.parquet")
    write_lines(tmp_path / ".cache" / "x.jsonl", [{"i": 9}])
    assert values(tmp_path) == [{"i": 0}, {"i": 1}]
    (tmp_path / "train.csv").write_text("i\n0\n", encoding="utf-8")  # may hold the same rows again
    with pytest.raises(StageError, match="name the file"):
        values(tmp_path)


def test_a_home_is_meant_by_its_sign(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lines(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "model").mkdir()
    assert resolve(Source(path="~/rows.jsonl"), Path("/nowhere")).path == tmp_path / "rows.jsonl"
    data = Data(directory="~/data", instructions=Source(path="~/rows.jsonl"))
    paths = [data.directory, Runtime(store="~/s").store, Runtime(hostfile="~/h").hostfile, Model(path="~/m").path]
    paths += [str(Tokenizer.model_validate({"from": "~/t"}).directory), Study.model_fields["base"].metadata and "~"]
    assert paths[:5] == [f"{tmp_path}/{name}" for name in ("data", "s", "h", "m", "t")]
    assert named_models(["~/model"]) == {"model": {"path": "~/model"}}
    with pytest.raises(ConfigError, match=f"no configuration file {tmp_path}/x.yaml"):
        load_config("~/x.yaml")
    assert Source(path="~nobody-of-this-name/x").path == "~nobody-of-this-name/x"


def broken_link(path: Path) -> None:
    path.symlink_to(path.parent / "gone.jsonl")


def loop(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a named pipe; write what it holds into a file"),
        (listening, "is a socket"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (broken_link, r"is a link to .*gone\.jsonl, which does not exist; mend the link"),
        (loop, "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.mkdir(), "holds nothing; name the file"),
    ],
)
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, make, message):
    path = tmp_path / "d" / "rows.jsonl"
    path.parent.mkdir()
    make(path)
    with pytest.raises(StageError, match=message):
        values(path)
    for read in (values, lambda p: list(read_documents(p)), lambda p: resolve(Source(path=str(p)), Path())):
        if not path.is_dir():
            with pytest.raises(StageError, match=r"rows\.jsonl " + message):
                read(path.parent)


@pytest.mark.parametrize("path", ["x" * 5000, "d/" * 3000 + "x", "nul\0byte"])
def test_a_path_that_no_file_can_have_is_refused(tmp_path, path):
    with pytest.raises(StageError, match=r"cannot be read: (File name too long|embedded null byte)") as error:
        resolve(Source(path=path), tmp_path)
    assert len(str(error.value)) < 400
    with pytest.raises(ConfigError, match="no configuration file"):
        load_config(path)


def test_a_file_or_folder_without_permission_is_named_and_not_left_out(tmp_path):
    write_lines(tmp_path / "corpus" / "a.jsonl", ROWS)
    closed = tmp_path / "corpus" / "closed"
    closed.mkdir()
    for path in tmp_path.parents:
        if Path(tempfile.gettempdir()) in path.parents:
            path.chmod(0o755)
    tmp_path.chmod(0o755)
    closed.chmod(0)
    try:
        os.seteuid(65534 if os.geteuid() == 0 else os.geteuid())  # root may read anything
        with pytest.raises(StageError, match="corpus/closed may not be read by this user; change its permissions"):
            values(tmp_path / "corpus")
        with pytest.raises(StageError, match="corpus/closed may not be read"):
            resolve(Source(path="corpus"), tmp_path)
        with pytest.raises(StageError, match=r"x\.csv may not be read"):
            values(closed / "x.csv")
    finally:
        os.seteuid(os.getuid())
        closed.chmod(0o755)


def test_links_within_a_corpus_are_followed_but_not_in_circles(tmp_path):
    write_lines(tmp_path / "elsewhere" / "a.jsonl", ROWS)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "part").symlink_to(tmp_path / "elsewhere")
    assert values(tmp_path / "corpus") == ROWS
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    with pytest.raises(StageError, match="back is a link to a folder that holds it"):
        values(tmp_path / "corpus")


def test_a_line_or_row_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    for module in (records, json_rows):
        monkeypatch.setattr(module, "LONGEST", 1000)
    long = json.dumps({"text": "x" * 1000})
    (tmp_path / "a.jsonl").write_text(f"{{}}\n{long}\n", encoding="utf-8")
    (tmp_path / "a.json").write_text(f"[{{}}, {long}]", encoding="utf-8")
    (tmp_path / "a.txt").write_text(f"x\n{long}\n", encoding="utf-8")
    with pytest.raises(StageError, match=r"a\.jsonl: line 2 is longer than 0 MiB; part it"):
        values(tmp_path / "a.jsonl")
    with pytest.raises(StageError, match=r"a\.txt: line 2 is longer"):
        list(read_documents(tmp_path / "a.txt"))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
def test_a_json_list_gives_the_same_elements_whatever_is_read_at_once(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_rows, "BLOCK", block)
    elements = [12, -3.5e2, "é\u2028\n", {"a": [1, {"b": None}]}, [], True, {}, "]", ","]
    text = f" {json.dumps(elements, indent=1)} \n"
    monkeypatch.setattr(json_rows, "BLOCK", max(block, text.index("[") + 1))
    path = tmp_path / "list.json"
    path.write_text(text, encoding="utf-8-sig")
    assert values(path) == elements
    path.write_text("[]", encoding="utf-8")
    assert values(path) == []
    bad = {"[1, 2": "element 3: ", "[1 2]": "element 2: a comma", "[1,]": "element 2: Exp", "[1] 2": "behind the ]"}
    for text, message in {**bad, '[1, {"a": tru}]': "element 2: Exp", "[" * 100_000: "nested too deeply"}.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(StageError, match=message):
            values(path)


@pytest.mark.parametrize("block", [4999, 1 << 20])
def test_rows_of_a_json_list_that_lose_a_part_are_malformed(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_rows, "BLOCK", block)
    path = tmp_path / "list.json"
    digits = "1" * 5000
    rows = f'{{"a": "\\ud83d"}}, {{"a": "\\ud83d\\ude00"}}, {{"a": 1, "a": 2}}, {{"a": {digits}}}, {digits}, {{"a": 3}}'
    path.write_text(f"[{rows}]", encoding="utf-8")
    first, second, third, fourth, fifth, last = read_records(path)
    assert first.problem is not None
    assert first.problem.startswith("half a character")
    assert second.value == {"a": "\N{GRINNING FACE}"}
    assert third.problem == "`a` is given twice"
    assert fourth.problem == fifth.problem == "a number of 5,000 digits, too many to read"
    assert last.value == {"a": 3}
    path.write_bytes(b'[{"a": "caf\xe9"}]')
    with pytest.raises(StageError, match="byte 0xe9 at position 11"):
        values(path)


def test_lines_of_json_end_at_line_ends_alone(tmp_path: Path):
    path, values = tmp_path / "rows.jsonl", ["a\u2028b\x85c", {"d": "\x0b"}]
    path.write_text("\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n", encoding="utf-8")
    assert read_json_lines(path) == values
