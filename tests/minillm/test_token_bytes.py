"""Tokens stand for every byte of a text exactly once, for any tokenizer and wherever the text is cut."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minillm.data.encoding import encode_texts
from minillm.data.plain_text import PlainText
from minillm.data.token_bytes import spelled_bytes, written_bytes
from minillm.evaluation.held_out import blocks
from minillm.models.tokenizers_bpe import train_bpe
from minillm.stages.reading import HeldOutTexts
from tests.minillm.direct import run_stage

TEXT = "Ich höre 答え 🙂, naïve café\n\n"


def sentence_pieces() -> PreTrainedTokenizerBase:
    """Make a tokenizer like LLaMA's: a space before the text, "▁" for spaces, bytes for what no piece covers."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi"]
    raw = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("▁", "h"), ("▁h", "i")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")


def words() -> PreTrainedTokenizerBase:
    """Make a tokenizer of whole words, which loses the spaces between them."""
    raw = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "Ich": 2, "höre": 3}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")


def test_a_byte_level_token_stands_for_its_very_bytes():
    tokenizer = train_bpe([TEXT] * 5, 270)
    (ids,) = encode_texts(tokenizer, [TEXT])
    spelled = spelled_bytes(tokenizer)
    assert spelled[0] == 0, "EOS"
    assert spelled[ids].sum() == len(TEXT.encode())
    encoded = TEXT.encode()
    for cut in range(len(ids)):  # characters of three and four bytes are cut too
        counted = int(spelled[ids[:cut]].sum())
        assert encoded[:counted].decode(errors="replace") == tokenizer.decode(ids[:cut])


@pytest.mark.parametrize("make", [sentence_pieces, words])
def test_the_parts_of_a_text_add_up_to_it(make):
    tokenizer = make()
    (ids,) = encode_texts(tokenizer, [TEXT])
    spelled = spelled_bytes(tokenizer)
    whole = len(TEXT.encode()), int(spelled[ids].sum())
    for cut in (0, 1, len(ids) // 2, len(ids)):
        parts = [written_bytes(part, spelled, *whole) for part in (ids[:cut], ids[cut:])]
        assert sum(parts) == pytest.approx(len(TEXT.encode()))


def test_sentence_pieces_and_byte_tokens_are_counted_as_written():
    tokenizer = sentence_pieces()
    (ids,) = encode_texts(tokenizer, ["hi é"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁hi", "▁", "<0xC3>", "<0xA9>"]
    assert spelled_bytes(tokenizer)[ids].tolist() == [3, 1, 1, 1]


def test_a_block_that_cuts_a_character_loses_none_of_its_bytes(tmp_path):
    tokenizer = train_bpe(["a"], 257)  # every byte is a token
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("🙂" * 6, encoding="utf-8")
    sources = {"tokenizer": tmp_path / "tokenizer", "held_out/smiles": tmp_path / "text.txt"}
    texts, _ = run_stage(HeldOutTexts(texts=("smiles",), block_tokens=5), sources, tmp_path / "run")
    of_blocks = blocks(texts / "smiles", spelled_bytes(tokenizer), 5)
    # 24 bytes and EOS are five blocks of five tokens; in each, all but the first are predicted
    assert of_blocks.text_bytes == [4, 4, 4, 4, 3]
    assert np.array_equal(PlainText(texts / "smiles", 5).block(1)[1:], of_blocks.pairs[1][1])
