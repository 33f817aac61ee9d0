"""Rows on their way through the filter: each gets a part of the split and, where it is dropped, one reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from minillm.config import Template
from minillm.data.decontamination import Overlap, find_overlaps, index_benchmarks, normalise, question
from minillm.data.prompts import encode_prompts, encode_texts, render
from minillm.data.rows import Row
from minillm.streams import Purpose, generator, stream

HELD_OUT_FIRST = {"test": 0, "validation": 1}


@dataclass
class Candidate:
    """One row with its tokens."""

    row: Row
    prompt: str
    prompt_ids: list[int]
    response_ids: list[int]
    """With EOS at the end."""
    part: str = ""
    """train, validation or test; unused where a given split leaves it out; "" before a random split."""
    reason: str = ""
    """Why it is dropped; "" while it is kept."""

    def drop_if(self, condition: bool, reason: str) -> None:
        """Drop it for a reason, unless it is dropped already."""
        if condition and not self.reason:
            self.reason = reason


def encode(rows: Sequence[Row], template: Template, tokenizer_path: Path) -> list[Candidate]:
    """Render and tokenise rows."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    asked = [(row.instruction, row.context) for row in rows]
    responses = encode_texts(tokenizer, [row.response for row in rows])
    return [
        Candidate(row, render(template, *question), prompt_ids, [*response_ids, tokenizer.eos_token_id])
        for row, question, prompt_ids, response_ids in zip(
            rows, asked, encode_prompts(tokenizer, template, asked), responses, strict=True
        )
    ]


def drop_duplicates(candidates: Sequence[Candidate]) -> None:
    """Of rows with the same three texts keep one: the one held out, if any, and then the first."""
    seen: set[tuple[str, ...]] = set()
    for candidate in sorted(kept(candidates), key=lambda c: HELD_OUT_FIRST.get(c.part, 2)):
        row = candidate.row
        texts = tuple(normalise(text) for text in (row.instruction, row.context, row.response))
        candidate.drop_if(texts in seen, "duplicate")
        seen.add(texts)


def drop_long(candidates: Sequence[Candidate], max_prompt_tokens: int, max_tokens: int) -> None:
    """Drop rows that do not fit, of every part."""
    for candidate in candidates:
        prompt, response = len(candidate.prompt_ids), len(candidate.response_ids)
        candidate.drop_if(prompt > max_prompt_tokens, "prompt too long")
        candidate.drop_if(prompt + response > max_tokens, "prompt with response too long")


def split_at_random(candidates: Sequence[Candidate], validation_size: int, test_size: int, seed: int) -> None:
    """Give the rows still kept a part, by a seeded permutation: validation, then test, and the rest is train."""
    left = kept(candidates)
    order = generator(stream(Purpose.SPLIT, seed)).permutation(len(left))
    for rank, index in enumerate(order):
        held_out = "test" if rank < validation_size + test_size else "train"
        left[index].part = "validation" if rank < validation_size else held_out


def drop_overlaps(
    candidates: Sequence[Candidate], benchmarks: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Overlap]:
    """Drop rows of train and validation that an evaluation set also holds, and say which."""
    left = {candidate.row.row: candidate for candidate in kept(candidates)}
    questions = {number: question(c.row.instruction, c.row.context) for number, c in left.items()}
    parts = {number: candidate.part for number, candidate in left.items()}
    overlaps = find_overlaps(questions, parts, index_benchmarks(benchmarks))
    for overlap in overlaps:
        left[overlap.row].drop_if(True, "also in an evaluation set")
    return overlaps


def kept(candidates: Sequence[Candidate], part: str | None = None) -> list[Candidate]:
    """Those not dropped, of one part or of all, in the order given."""
    return [c for c in candidates if not c.reason and part in (None, c.part)]
