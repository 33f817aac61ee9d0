"""Texts on their way to a tokenizer: in batches of bounded size, and long ones in pieces that have the same tokens."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from minillm.data.prompts import encode_texts
from minillm.errors import StageError

BATCH_CHARACTERS = 1 << 19
"""Text tokenised at once: a tokenizer takes some 200 bytes of memory for each character."""
PIECE = 1 << 18
"""Characters of a piece at most, where a text can be cut."""
LONGEST_PIECE = 1 << 22
"""Characters of a text that cannot be cut at most: more would take more than 1 GiB of memory."""
CONTEXT = 1000
"""Characters on both sides of a cut whose tokens must not change by it."""
CUTS = 64
"""Places tried for one cut."""
BORDERS = re.compile(r"(?<=\S)(?=\s)|(?<=[^\w\s])(?=\w)")
"""Behind a word or, in scripts that write no blanks, behind a punctuation mark."""

T = TypeVar("T")


def batches(items: Iterable[T], characters: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in lists of `BATCH_CHARACTERS`, or one item more."""
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
    """A part of a document to tokenise by itself."""

    text: str
    bytes: int
    """Of the document that it stands for; a blank between two pieces may be in neither."""
    last: bool
    """Whether the document ends with it."""


def pieces(tokenizer: Any, document: str) -> Iterator[Piece]:
    """Parts of a document whose tokens, one after another, are the tokens of the document.

    Tokenizers know no such cut, so each is tried: the tokens of the text around it must be the same with and without.
    Most documents are one piece.

    Raises:
        StageError: The document is longer than LONGEST_PIECE, and no place was found where it can be cut.
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
    """Where one piece ends and where the next begins; (0, 0) where there is no place.

    Tokenizers that put a blank before every text (LLaMA's) need the one at the cut left out.
    """
    for number, border in enumerate(BORDERS.finditer(text, first, last)):
        if number == CUTS:
            break
        place = border.start()
        for behind in (place, place + 1) if text[place] == " " else (place,):
            around = text[place - CONTEXT : place], text[behind : behind + CONTEXT]
            left, right, whole = encode_texts(tokenizer, [*around, text[place - CONTEXT : behind + CONTEXT]])
            if left + right == whole:
                return place, behind
    return 0, 0
