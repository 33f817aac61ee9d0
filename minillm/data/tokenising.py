"""Preparation of texts for a tokenizer: batches of bounded size, and pieces of long texts that keep their tokens."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from minillm.data.encoding import encode_texts
from minillm.errors import StageError

BATCH_CHARACTERS = 1 << 19
"""Characters tokenised at once: a tokenizer takes about 200 bytes of memory for each."""
PIECE = 1 << 18
"""Most characters of a piece, if the text can be cut."""
LONGEST_PIECE = 1 << 22
"""Most characters of a text that cannot be cut: more would take more than 1 GiB of memory."""
CUT_CONTEXT = 1000
"""Characters on each side of a cut whose tokens the cut must not change."""
CUTS = 64
"""Most places tried for one cut."""
BORDERS = re.compile(r"(?<=\S)(?=\s)|(?<=[^\w\s])(?=\w)")
"""Places to cut: after a word or, in scripts without blanks, after a punctuation mark."""

T = TypeVar("T")


def batches(items: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Group items into lists that end with the item that reaches `BATCH_CHARACTERS`."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += characters(item)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a document that is tokenised by itself."""

    text: str
    bytes: int
    """Bytes of the document that the piece stands for, including a blank after it that is in neither piece."""
    last: bool
    """True if the document ends with the piece."""


def pieces(tokenizer: Any, document: str) -> Iterator[Piece]:
    """Cut a document into pieces whose tokens, put together, are the tokens of the document.

    Tokenizers guarantee no such cut, so each cut is tried: the tokens of the text around it must be the same with and
    without it. Most documents are one piece.

    Raises:
        StageError: The document is longer than LONGEST_PIECE, and no place was found to cut it.
    """
    start = 0
    while len(document) - start > PIECE:
        end, behind = _cut(tokenizer, document, start + PIECE // 2, start + PIECE)
        if not end:
            if len(document) - start > LONGEST_PIECE:
                raise StageError(
                    f"plain text: a document of {len(document)} characters, which begins {document[:40]!r}, cannot be "
                    f"cut for this tokenizer behind character {start}; part it into documents of at most "
                    f"{LONGEST_PIECE} characters"
                )
            break
        yield Piece(document[start:end], len(document[start:behind].encode()), False)
        start = behind
    rest = document[start:] if start else document
    yield Piece(rest, len(rest.encode()), True)


def _cut(tokenizer: Any, text: str, first: int, last: int) -> tuple[int, int]:
    """Return where one piece ends and where the next begins; (0, 0) if no cut works.

    For tokenizers that put a blank before every text (LLaMA's), the blank at the cut must be left out.
    """
    for border in itertools.islice(BORDERS.finditer(text, first, last), CUTS):
        place = border.start()
        for behind in (place, place + 1) if text[place] == " " else (place,):
            around = text[place - CUT_CONTEXT : place], text[behind : behind + CUT_CONTEXT]
            left, right, whole = encode_texts(tokenizer, [*around, text[place - CUT_CONTEXT : behind + CUT_CONTEXT]])
            if left + right == whole:
                return place, behind
    return 0, 0
