import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from minillm.config import Model, Source
from minillm.data.sources import resolve
from minillm.data.tables import read_records
from minillm.errors import StageError
from minillm.store.artifacts import Store
from tests.minillm.direct import ROOT, write_lines
from tests.minillm.hub import COMMIT, Hub, serve

CHAT_FILES = (
    "config.json",
    "generation_config.json",
    "model-00001-of-00001.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "sentencepiece.bpe.model",
    "source.spm",
    "bpe.codes",
    "qwen.tiktoken",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)
"""Files that transformers reads of a causal language model and its tokenizer."""
RESOLVE = """
import json, sys
from pathlib import Path
from minillm.config import Model, Source
from minillm.errors import StageError
from minillm.data.sources import resolve
kind, fields = {"Model": Model, "Source": Source}[sys.argv[1]], json.loads(sys.argv[2])
try:
    resolved = resolve(kind(**fields), Path("."))
    print(json.dumps({"path": str(resolved.path), "fingerprint": resolved.fingerprint}))
except StageError as error:
    print(json.dumps({"error": str(error)}))
"""


def resolve_apart(endpoint: str, cache: Path, kind: str, **fields: str) -> dict[str, str]:
    """Resolve in a process of its own: huggingface_hub reads HF_ENDPOINT once, on import."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", RESOLVE, kind, json.dumps(fields)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_local_fingerprint_is_of_content_not_of_place_or_time(tmp_path):
    first = write_lines(tmp_path / "a" / "rows.jsonl", [1, 2])
    second = write_lines(tmp_path / "b" / "other.jsonl", [1, 2])
    os.utime(second, (0, 0))
    here, there = (resolve(Source(path=p.name), p.parent) for p in (first, second))
    assert here.fingerprint == there.fingerprint
    assert here.path == first
    write_lines(second, [1, 3])
    assert resolve(Source(path="other.jsonl"), second.parent).fingerprint != here.fingerprint


def test_content_may_be_pinned(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [1, 2])
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert resolve(Source(path="rows.jsonl", sha256=sha256), tmp_path).path == path
    write_lines(path, [1, 3])
    with pytest.raises(StageError, match=f"has SHA-256 .*, but the configuration says {sha256}; fetch the right"):
        resolve(Source(path="rows.jsonl", sha256=sha256), tmp_path)
    with pytest.raises(StageError, match="is a directory, and `sha256` is of one file; name it in `file`"):
        resolve(Source(path=".", sha256=sha256), tmp_path)
    with pytest.raises(ValueError, match="pin a hub dataset by a commit in `revision`"):
        Source(hub="a/b", sha256=sha256)


def test_a_directory_counts_names_and_contents_but_nothing_hidden(tmp_path):
    write_lines(tmp_path / "d" / "sub" / "x.jsonl", [1])
    before = resolve(Source(path="d"), tmp_path).fingerprint
    write_lines(tmp_path / "d" / ".cache" / "y", [1])
    assert resolve(Source(path="d"), tmp_path).fingerprint == before
    (tmp_path / "d" / "sub" / "x.jsonl").rename(tmp_path / "d" / "x.jsonl")
    assert resolve(Source(path="d"), tmp_path).fingerprint != before


def test_a_model_that_is_exported_again_is_the_same_source(tmp_path):
    prints = set()
    for number in (1, 2):
        store = Store(tmp_path / f"{number}")
        output = store.work_directory("model", "k" * 64) / "output"
        write_lines(output / "model.safetensors", ["weights"])
        write_lines(output / "config.json", [{}])
        write_lines(output / "metrics.jsonl", [{"time": number}])
        artifact = store.complete("model", "k" * 64, {})
        prints.add(resolve(Model(path=artifact.path), Path()).fingerprint)
    assert len(prints) == 1
    write_lines(Path(artifact.path) / "model.safetensors", ["others"])
    assert resolve(Model(path=artifact.path), Path()).fingerprint not in prints


@pytest.mark.parametrize("name", CHAT_FILES)
def test_a_models_fingerprint_covers_all_that_is_read_of_it(tmp_path, name):
    for each in CHAT_FILES:
        (tmp_path / each).parent.mkdir(exist_ok=True)
        (tmp_path / each).write_text(each, encoding="utf-8")
    before = resolve(Model(path=str(tmp_path)), Path()).fingerprint
    (tmp_path / name).write_text("another content", encoding="utf-8")
    assert resolve(Model(path=str(tmp_path)), Path()).fingerprint != before


def test_a_missing_path_suggests_the_nearest(tmp_path):
    write_lines(tmp_path / "dolly" / "databricks-dolly-15k.jsonl", [1])
    with pytest.raises(StageError, match=r"does not exist; did you mean .*/dolly/databricks-dolly-15k\.jsonl\?"):
        resolve(Source(path="dolly/databricks-doly-15k.jsonl"), tmp_path)
    with pytest.raises(StageError, match=r"does not exist; did you mean .*/dolly\?"):
        resolve(Source(path="doly", file="x.jsonl"), tmp_path)


def test_a_model_directory_needs_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StageError, match=r"has no weights .* only config\.json.*`architecture`"):
        resolve(Model(path=str(tmp_path)), Path())
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"w")
    assert resolve(Model(path=str(tmp_path)), Path()).path == tmp_path


def test_records_come_with_their_line_and_what_is_wrong_with_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n  \n{"a": \n\xff\xfe\n[2]\n')
    records = list(read_records(path))
    assert [(r.line, r.value) for r in records if r.problem is None] == [(1, {"a": 1}), (6, [2])]
    assert [r.line for r in records if r.problem] == [4, 5]
    assert str(records[1].problem).startswith("not JSON")
    assert records[2].problem == "not UTF-8 (byte 0xff at column 1)"


@pytest.mark.parametrize(
    ("name", "by_directory"),
    [(n, False) for n in ("rows.jsonl", "rows.json", "list.json", "rows.parquet", "rows.csv")]
    + [(n, True) for n in ("rows.jsonl", "rows.parquet", "rows.csv")],
)
def test_every_format_gives_the_same_rows(tmp_path, name, by_directory):
    rows = [{"instruction": "Say é", "response": "é\n\u2028."}, {"instruction": "b", "response": "c"}]
    table = datasets.Dataset.from_list(rows)
    path = tmp_path / "data" / name
    path.parent.mkdir()
    writers = {".parquet": table.to_parquet, ".csv": table.to_csv}
    if path.suffix in writers:
        writers[path.suffix](str(path))
    else:
        path.write_text(json.dumps(rows) if name == "list.json" else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [r.value for r in read_records(path.parent if by_directory else path)] == rows


def test_a_directory_of_several_files_asks_which(tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"a": 1}])
    write_lines(tmp_path / "test.jsonl", [{"a": 1}])
    with pytest.raises(
        StageError, match=r"holds test\.jsonl, train\.jsonl; name the file or folder to read with `file`"
    ):
        list(read_records(tmp_path))
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").unlink()
        datasets.Dataset.from_list([{"a": 1}]).to_parquet(str(tmp_path / f"{name}-00000-of-00001.parquet"))
    with pytest.raises(StageError, match="has the splits train, test; name the file"):
        list(read_records(tmp_path))


def test_a_broken_table_and_an_unknown_format_are_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(StageError, match=r"x\.parquet cannot be read as a table"):
        list(read_records(tmp_path / "x.parquet"))
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(StageError, match=r"unknown format '\.xlsx'; use one of \.jsonl"):
        list(read_records(tmp_path / "x.xlsx"))


def test_hub_repositories_are_pinned_to_a_commit_and_bring_no_code(tmp_path):
    rows = b'{"instruction": "a", "response": "b"}\n'
    repositories = {
        ("datasets", "databricks/dolly"): {"dolly.jsonl": rows, "other.bin": b"x", "README.md": b"#"},
        ("models", "some/model"): {
            "config.json": b"{}",
            "model.safetensors": b"weights",
            "pytorch_model.bin": b"old weights",
            "modeling_custom.py": b"raise SystemExit('code of the repository ran')",
            "tokenizer.json": b"{}",
        },
        ("models", "some/chat-model"): {
            **{name: name.encode() for name in CHAT_FILES},
            **{name: b"unread" for name in ("model.onnx", "flax_model.msgpack", "README.md", "code.py")},
        },
        ("models", "some/old-model"): {"config.json": b"{}", "pytorch_model.bin": b"old weights"},
        ("models", "some/empty-model"): {"config.json": b"{}"},
        ("models", "meta/gated"): {"config.json": b"{}"},
    }
    with serve(Hub(repositories, gated=("meta/gated",))) as hub:
        found = resolve_apart(hub.endpoint, tmp_path, "Source", hub="databricks/dolly", file="dolly.jsonl")
        assert Path(found["path"]).read_bytes() == rows
        assert found["fingerprint"] == f"hub:datasets/databricks/dolly@{COMMIT}/dolly.jsonl"
        assert hub.fetched == ["dolly.jsonl"]
        whole = resolve_apart(hub.endpoint, tmp_path, "Source", hub="databricks/dolly")
        assert [r.value for r in read_records(Path(whole["path"]))] == [json.loads(rows)]

        found = resolve_apart(hub.endpoint, tmp_path, "Model", hub="some/model")
        assert sorted(p.name for p in Path(found["path"]).iterdir()) == [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ]
        assert found["fingerprint"] == f"hub:some/model@{COMMIT}"
        chat = resolve_apart(hub.endpoint, tmp_path, "Model", hub="some/chat-model")
        fetched = {
            str(p.relative_to(chat["path"])): p.read_text(encoding="utf-8")
            for p in Path(chat["path"]).rglob("*")
            if p.is_file()
        }
        assert fetched == {name: name for name in CHAT_FILES}
        old = resolve_apart(hub.endpoint, tmp_path, "Model", hub="some/old-model")
        assert sorted(p.name for p in Path(old["path"]).iterdir()) == ["config.json", "pytorch_model.bin"]

        errors = {
            "has no weights": {"kind": "Model", "hub": "some/empty-model"},
            "is gated": {"kind": "Model", "hub": "meta/gated"},
            "there is no model 'some/modl'": {"kind": "Model", "hub": "some/modl"},
            "no such branch, tag or commit": {"kind": "Model", "hub": "some/model", "revision": "v9"},
            "has no file doly.jsonl": {"kind": "Source", "hub": "databricks/dolly", "file": "doly.jsonl"},
        }
        for message, request in errors.items():
            answer = resolve_apart(hub.endpoint, tmp_path, **request)
            assert message in answer["error"]

    # the server is gone: what is cached still resolves, to the same fingerprint; the rest says what to do
    again = resolve_apart(hub.endpoint, tmp_path, "Model", hub="some/model")
    assert again["fingerprint"] == f"hub:some/model@{COMMIT}"
    unreachable = resolve_apart(hub.endpoint, tmp_path, "Model", hub="some/other")["error"]
    assert all(remedy in unreachable for remedy in (hub.endpoint, "HF_ENDPOINT", "HF_HUB_OFFLINE=1", "`path`"))
