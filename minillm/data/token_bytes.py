"""Bytes of a text that each of its tokens stands for, even if a text is cut within a character."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from minillm.models.shared_tokenizer import entries_of

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Spelling of one byte, in SentencePiece, of a character that its vocabulary lacks."""
SPACE = "▁"
"""Spelling of a space in SentencePiece."""


def spelled_bytes(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Return the number of bytes (V,) that spell each entry: 0 for special tokens, which stand for no text, 1 for UNK.

    A byte-level tokenizer spells every byte as one letter, so these are exactly the bytes of the text. Other tokenizers
    add a space before a text or leave out spaces between words: see `written_bytes`.
    """
    added = tokenizer.added_tokens_decoder
    ordinary = {index: token for token, index in tokenizer.get_vocab().items() if index not in added}
    byte_level = set().union(*ordinary.values()) <= set(ByteLevel.alphabet())
    counts = np.zeros(entries_of(tokenizer), np.int64)
    for index, token in ordinary.items():
        counts[index] = len(token) if byte_level else _length(token)
    for index, token in added.items():
        counts[index] = 0 if token.special else len(token.content.encode())
    unknown = tokenizer.unk_token_id
    if isinstance(unknown, int) and unknown != tokenizer.eos_token_id:  # one token may have both roles
        counts[unknown] = 1
    return counts


def written_bytes(part: Sequence[int], spelled: NDArray[np.int64], text_bytes: int, text_spelled: int) -> float:
    """Return the bytes of a text that some of its tokens stand for.

    If the text has more or fewer bytes than its tokens spell, the difference is shared among them in proportion, so
    that the parts of a text add up to it.

    Args:
        part: Token ids.
        spelled: Bytes that spell each entry (V,), from `spelled_bytes`.
        text_bytes: Bytes of the whole text.
        text_spelled: Bytes that spell all its tokens.
    """
    return float(spelled[np.asarray(part, np.int64)].sum()) * text_bytes / max(1, text_spelled)


def _length(token: str) -> int:
    return 1 if BYTE.fullmatch(token) else len(token.replace(SPACE, " ").encode())
