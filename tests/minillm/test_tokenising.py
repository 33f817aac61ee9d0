"""Long texts tokenised in pieces have the tokens of the whole, with tokenizers of every kind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minillm.data import tokenising
from minillm.data.encoding import encode_texts
from minillm.data.tokenising import batches, pieces
from minillm.errors import StageError

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SAMPLE = (
    "don't the river runs, 1234567 times; “quoted” (twice).\n\n  indented\tcode() { x = 1; }\r\n Straße naïve "
    "日本語の文章。次の文、 Привет мир — e\u0301 🙂🙂 … hello-world http://a.b/c?d=e   three spaces ... end.\n"
)


def text(length: int, seed: int = 0) -> str:
    words, random = SAMPLE.split(" "), np.random.default_rng(seed)
    return " ".join(words[i] for i in random.integers(len(words), size=length // 4))[:length]


def byte_level(split: str | None) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    split_first = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split_first, byte])
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )


def llama_2() -> tuple[Tokenizer, Any]:
    """Return a tokenizer that puts a space before every text and does not split words, so merges may cross them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)


def unigram() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )


def word_piece() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)


KINDS: dict[str, Callable[[], tuple[Tokenizer, Any]]] = {
    "GPT-2": lambda: byte_level(None),
    "Llama 3": lambda: byte_level(LLAMA_3),
    "Llama 2": llama_2,
    "T5": unigram,
    "BERT": word_piece,
}


def make(kind: str) -> PreTrainedTokenizerFast:
    tokenizer, trainer = KINDS[kind]()
    tokenizer.train_from_iterator([line for line in text(20_000).split("\n") if line], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_text_have_the_tokens_of_the_whole(monkeypatch, kind):
    monkeypatch.setattr(tokenising, "PIECE", 500)
    monkeypatch.setattr(tokenising, "CUT_CONTEXT", 100)
    tokenizer = make(kind)
    whole = text(60_000, seed=1)
    found = list(pieces(tokenizer, whole))
    assert len(found) > 100
    assert max(len(piece.text) for piece in found) <= 500
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
    assert sum(piece.bytes for piece in found) == len(whole.encode())
    ids = [token for part in encode_texts(tokenizer, [piece.text for piece in found]) for token in part]
    assert ids == encode_texts(tokenizer, [whole])[0]


def test_a_short_text_is_one_piece_whatever_stands_in_it():
    tokenizer = make("GPT-2")
    (piece,) = pieces(tokenizer, " \n x ")
    assert (piece.text, piece.bytes, piece.last) == (" \n x ", 5, True)


def test_what_cannot_be_cut_stays_whole_up_to_a_length_and_is_refused_beyond(monkeypatch):
    monkeypatch.setattr(tokenising, "PIECE", 100)
    monkeypatch.setattr(tokenising, "LONGEST_PIECE", 400)
    tokenizer = make("GPT-2")
    assert [piece.text for piece in pieces(tokenizer, "x" * 400)] == ["x" * 400]
    with pytest.raises(
        StageError, match=r"401 characters, which begins 'xxx.*cannot be cut .* behind character 0; part"
    ):
        list(pieces(tokenizer, "x" * 401))
    found = [piece.text for piece in pieces(tokenizer, "word " * 30 + "x" * 300)]
    assert found[-1].endswith("x" * 300)
    assert "".join(found) == "word " * 30 + "x" * 300


def test_batches_are_bounded_by_their_characters(monkeypatch):
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 10)
    assert list(batches(["a" * 4, "b" * 6, "c" * 30, "d"], len)) == [["a" * 4, "b" * 6], ["c" * 30], ["d"]]
    assert list(batches([], len)) == []
