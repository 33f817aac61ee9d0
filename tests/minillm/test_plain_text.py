import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data as measured
from minillm.data import tokenising
from minillm.data.documents import read_documents
from minillm.data.encoding import encode_texts
from minillm.data.plain_text import PlainText
from minillm.errors import StageError
from minillm.models.tokenizers_bpe import train_bpe
from minillm.stages.reading import Pack
from tests.minillm.direct import real_data, run_stage, write_lines


def pack(folder: Path, corpus: Path, block_tokens: int = 4, vocabulary: int = 257) -> tuple[Path, dict]:
    train_bpe([], vocabulary).save_pretrained(folder / "tokenizer")
    inputs = {"plain_text": corpus, "tokenizer": folder / "tokenizer"}
    return run_stage(Pack(block_tokens=block_tokens), inputs, folder / "run")


def text_file(folder: Path, text: str) -> Path:
    path = folder / "plain.txt"
    path.write_bytes(text.encode())
    return path


def test_documents_are_parted_by_eos_and_cut_to_whole_blocks(tmp_path):
    output, summary = pack(tmp_path, text_file(tmp_path, "abc\ndefgh\nij\n"))
    tokenizer = train_bpe([], 257)
    a = encode_texts(tokenizer, ["a"])[0][0]
    expected = [a, a + 1, a + 2, 0, *range(a + 3, a + 8), 0, a + 8, a + 9, 0]  # 13 tokens, 3 blocks of 4
    assert np.load(output / "tokens.npy").tolist() == expected[:12]
    assert summary == {"documents": 3.0, "tokens": 13.0, "blocks": 3.0}
    assert json.loads((output / "meta.json").read_text(encoding="utf-8")) == {
        "block_tokens": 4,
        "blocks": 3,
        "documents": 3,
        "tokens": 13,
        "text_bytes": 10,
        "text_spelled": 10,
        "dtype": "uint16",
    }
    assert not list((tmp_path / "run" / "work").iterdir())


def test_blocks_are_read_from_the_map_and_bounded(tmp_path):
    output, _ = pack(tmp_path, text_file(tmp_path, "abcdefghij"))
    corpus = PlainText(output, 4)
    assert len(corpus) == 2
    assert np.concatenate([corpus.block(0), corpus.block(1)]).tolist() == np.load(output / "tokens.npy").tolist()
    assert isinstance(corpus.block(1).base, np.memmap)
    for index in (2, -1):
        with pytest.raises(IndexError):
            corpus.block(index)


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one\ntwo\r\nthree", ["one", "two", "three"]),
        ("one\ntwo\n\n\n", ["one", "two"]),
        ("\n\none\n", ["one"]),
        ("a poem\nof lines\n \nand another\n", ["a poem\nof lines", "and another"]),
        ("\ufeffone\nt\u2028wo", ["one", "t\u2028wo"]),
    ],
)
def test_blank_lines_part_documents_and_without_any_every_line_is_one(tmp_path, text, documents):
    assert list(read_documents(text_file(tmp_path, text))) == documents


def test_rows_and_directories_serve_as_well(tmp_path):
    rows = write_lines(tmp_path / "rows" / "c.jsonl", [{"text": "one"}, {"text": " "}, {"text": "two"}])
    (tmp_path / "rows" / "LICENSE.txt").write_text("no corpus", encoding="utf-8")
    assert list(read_documents(rows)) == list(read_documents(rows.parent)) == ["one", "two"]
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / f"{name}.txt").write_text(name, encoding="utf-8")
    assert list(read_documents(folder)) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r"c\.jsonl:2: no field `text`"),
        ("c.jsonl", b'{"text": 1}\n', r"c\.jsonl:1: `text` is int"),
        ("c.jsonl", b"{\n", r"c\.jsonl:1: not JSON"),
        ("c.txt", b"fine\ncaf\xe9\n", r"c\.txt:2: not UTF-8 \(byte 0xe9 at column 4\)"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_refused_by_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StageError, match=message):
        pack(tmp_path, tmp_path / name)


def test_a_corpus_shorter_than_one_block_is_refused_with_its_length(tmp_path):
    with pytest.raises(StageError, match=r"has 3 tokens, less than one block of 4 \(data\.max_tokens\)"):
        pack(tmp_path, text_file(tmp_path, "ab"))


def test_a_corpus_is_streamed_and_shows_progress(tmp_path, capsys):
    output, summary = pack(tmp_path, text_file(tmp_path, ("x" * 1023 + "\n") * 3000), block_tokens=512)
    assert summary["tokens"] == 3000 * 1024
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert (lines[-1]["step"], lines[-1]["total"]) == (2, 2)
    assert lines[0]["step"] < 2, "progress must show before the end"
    assert "2/2 MB of plain text" in capsys.readouterr().out


def test_long_documents_are_packed_in_pieces_to_the_same_array(tmp_path, monkeypatch):
    text = "".join(f"word {i} of, {i * i} a text; " for i in range(3000)) + "\nshort\n" + "x" * 5000
    whole, facts = pack(tmp_path / "whole", text_file(tmp_path, text))
    monkeypatch.setattr(tokenising, "PIECE", 1000)
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 3000)
    cut, same = pack(tmp_path / "cut", text_file(tmp_path, text))
    assert same == facts
    assert facts["documents"] == 3
    assert (cut / "tokens.npy").read_bytes() == (whole / "tokens.npy").read_bytes()
    tokenizer = train_bpe([], 257)
    plain = [token for line in text.split("\n") for token in [*encode_texts(tokenizer, [line])[0], 0]]
    np.save(tmp_path / "plain.npy", np.array(plain[: len(plain) // 4 * 4], np.uint16))
    assert (cut / "tokens.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()


@pytest.mark.parametrize(("lines", "length"), [(1, 5 << 20), (5 << 13, 127)])
def test_memory_does_not_grow_with_a_line_or_a_corpus(tmp_path, lines, length):
    """5 MiB on one line once took 1.5 GiB (libraries: 0.4)."""
    sentence = "the quick brown fox jumps over 12 lazy dogs. "
    line = (sentence * (length // len(sentence) + 1))[:length] + "\n"
    corpus = text_file(tmp_path, line * lines)
    train_bpe([], 257).save_pretrained(tmp_path / "tokenizer")
    inputs = {"plain_text": corpus, "tokenizer": tmp_path / "tokenizer"}
    assert measured.run_stage(Pack(block_tokens=512), inputs, tmp_path / "run")["peak_gib"] < 0.75


def test_the_real_wikitext_packs_and_decodes_to_its_first_words(tmp_path):
    output, _ = pack(tmp_path, real_data() / "corpus" / "wikitext-2" / "valid.txt", block_tokens=512)
    first = train_bpe([], 257).decode(PlainText(output, 512).block(0))
    assert str(first).startswith(" = Homarus gammarus = <|endoftext|> Homarus gammarus , known as the European lobster")
