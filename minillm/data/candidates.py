"""Rows on their way through the filter: each gets a part of the split and, if it is dropped, one reason."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.data.decontamination import Overlap, index_benchmarks
from minillm.streams import Purpose, generator, stream

HELD_OUT_FIRST = {"test": 0, "validation": 1}


@dataclass(slots=True)
class Candidate:
    """Facts that decide about one row; its texts and tokens wait in a file (see `minillm.data.examples`)."""

    row: int
    category: str
    texts: bytes
    """Digest of all of the row's texts."""
    questions: tuple[bytes, ...]
    """Digests of all messages of the user; the first opens the row."""
    longest_prompt: int
    """Tokens before the last answer."""
    prompt_tokens: int
    """Tokens that are only read."""
    response_tokens: int
    """Tokens that are learnt, with those that end an answer."""
    part: str = ""
    """train, validation or test; unused if a given split leaves the row out; "" before a random split."""
    reason: str = ""
    """Reason for dropping the row; "" while it is kept."""

    def drop_if(self, condition: bool, reason: str) -> None:
        """Drop the row for a reason, unless it is dropped already."""
        if condition and not self.reason:
            self.reason = reason


def drop_duplicates(candidates: Sequence[Candidate]) -> None:
    """Keep one of the rows with the same texts: a held-out one if there is one, or else the first."""
    seen: set[bytes] = set()
    for candidate in sorted(kept(candidates), key=lambda c: HELD_OUT_FIRST.get(c.part, 2)):
        candidate.drop_if(candidate.texts in seen, "duplicate")
        seen.add(candidate.texts)


def drop_long(candidates: Sequence[Candidate], max_prompt_tokens: int, max_tokens: int) -> None:
    """Drop rows of any part that are too long."""
    for candidate in candidates:
        candidate.drop_if(candidate.longest_prompt > max_prompt_tokens, "prompt too long")
        candidate.drop_if(
            candidate.prompt_tokens + candidate.response_tokens > max_tokens, "prompt with response too long"
        )


def split_at_random(candidates: Sequence[Candidate], validation_size: int, test_size: int, seed: int) -> None:
    """Assign the kept rows to parts by a seeded permutation: first validation, then test, the rest train."""
    left = kept(candidates)
    order = generator(stream(Purpose.SPLIT, seed)).permutation(len(left))
    for rank, index in enumerate(order):
        held_out = "test" if rank < validation_size + test_size else "train"
        left[index].part = "validation" if rank < validation_size else held_out


def drop_overlaps(
    candidates: Sequence[Candidate], benchmarks: Mapping[str, Iterable[Mapping[str, Any]]]
) -> list[Overlap]:
    """Drop rows of train and validation that ask what opens a row of a benchmark, or of the data held out from them.

    They may ask it anywhere in a conversation.

    Returns:
        Overlaps in the order of rows. A test row is never one, since it stands in the benchmark made from it.
    """
    overlaps: list[Overlap] = []
    held_out = index_benchmarks(benchmarks)
    for part in ("test", "validation", "train"):
        if part != "test":
            found = [(c, place) for c in kept(candidates, part) if (place := _asked_in(c, held_out))]
            overlaps += [Overlap(candidate.row, *place) for candidate, place in found]
            for candidate, _ in found:
                candidate.drop_if(True, "also in an evaluation set")
        for candidate in kept(candidates, part):
            for opening in candidate.questions[:1]:
                held_out.setdefault(opening, (part, candidate.row))
    return sorted(overlaps, key=lambda overlap: overlap.row)


def _asked_in(candidate: Candidate, held_out: Mapping[bytes, tuple[str, int]]) -> tuple[str, int] | None:
    return next((held_out[question] for question in candidate.questions if question in held_out), None)


def kept(candidates: Sequence[Candidate], part: str | None = None) -> list[Candidate]:
    """Return the candidates that are not dropped, of one part or of all, in the given order."""
    return [c for c in candidates if not c.reason and part in (None, c.part)]
