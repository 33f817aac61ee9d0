"""Examples of the filter: tokenised in batches into a file, and distributed from there to their parts.

However many rows there are, texts and tokens are in memory only a batch at a time.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minillm.config import Template
from minillm.data.candidates import Candidate
from minillm.data.decontamination import digest, normalise, question
from minillm.data.prompts import encode_prompts, encode_texts, render
from minillm.data.rows import InstructionRow
from minillm.data.tokenising import PIECE, batches

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "category": pa.string(),
        "prompt": pa.string(),
        "response": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "response_ids": pa.list_(pa.int32()),
    }
)
WAITING = SCHEMA.append(pa.field("instruction", pa.string()))
"""Schema of the file in which rows wait until they are decided upon."""
GROUP = 1 << 15
"""Rows in a row group of a part's file; so many are in memory at once."""
MARGIN = 16
"""Tokens that cutting a text may add: its beginning alone may have a few more than it has within the text."""


def tokenise(
    rows: Iterable[InstructionRow], template: Template, tokenizer: Any, max_tokens: int, target: Path
) -> list[Candidate]:
    """Render and tokenise rows into a file.

    Args:
        rows: Rows to write, in order.
        template: Template of the prompt.
        tokenizer: Tokenizer with an EOS token.
        max_tokens: Longest prompt or response whose tokens are kept; a longer row is dropped later.
        target: File for an Arrow stream of WAITING.
    """
    candidates: list[Candidate] = []
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, WAITING) as writer:
        for batch in batches(rows, _characters):
            encoded = _encode(batch, template, tokenizer, max_tokens)
            candidates += [
                Candidate(
                    row.row,
                    row.category,
                    texts=digest(*map(normalise, (row.instruction, row.context, row.response))),
                    question=digest(*question(row.instruction, row.context)),
                    prompt_tokens=len(prompt_ids),
                    response_tokens=len(response_ids),
                )
                for row, (_, prompt_ids, response_ids) in zip(batch, encoded, strict=True)
            ]
            writer.write_batch(_waiting(batch, encoded, max_tokens))
    return candidates


Encoded = tuple[str, list[int], list[int]]
"""A prompt, its tokens, and the response's tokens with EOS."""


def _characters(row: InstructionRow) -> int:
    return sum(min(len(text), PIECE) for text in (row.instruction, row.context, row.response))


def _encode(rows: Sequence[InstructionRow], template: Template, tokenizer: Any, max_tokens: int) -> list[Encoded]:
    """Tokenise rows. The beginning of a far too long one is enough to tell that it is too long."""
    short = [
        replace(row, **{name: getattr(row, name)[:PIECE] for name in ("instruction", "context", "response")})
        for row in rows
    ]
    encoded = _encode_whole(short, template, tokenizer)
    for number, row in enumerate(rows):
        if short[number] != row and max(map(len, encoded[number][1:])) <= max_tokens + MARGIN:
            encoded[number] = _encode_whole([row], template, tokenizer)[0]
    return encoded


def _encode_whole(rows: Sequence[InstructionRow], template: Template, tokenizer: Any) -> list[Encoded]:
    asked = [(row.instruction, row.context) for row in rows]
    prompts = [render(template, instruction, context) for instruction, context in asked]
    prompt_ids = encode_prompts(tokenizer, template, asked)
    response_ids = encode_texts(tokenizer, [row.response for row in rows])
    return [
        (prompt, ids, [*answered, tokenizer.eos_token_id])
        for prompt, ids, answered in zip(prompts, prompt_ids, response_ids, strict=True)
    ]


def _waiting(rows: Sequence[InstructionRow], encoded: Sequence[Encoded], max_tokens: int) -> pa.RecordBatch:
    kept = [
        (row, *texts)
        if max(map(len, texts[1:])) <= max_tokens
        else (replace(row, instruction="", response=""), "", [], [])
        for row, texts in zip(rows, encoded, strict=True)
    ]
    columns = {
        "row": [row.row for row, *_ in kept],
        "category": [row.category for row, *_ in kept],
        "prompt": [prompt for _, prompt, *_ in kept],
        "response": [row.response for row, *_ in kept],
        "prompt_ids": [ids for *_, ids, _ in kept],
        "response_ids": [ids for *_, ids in kept],
        "instruction": [row.instruction for row, *_ in kept],
    }
    return pa.RecordBatch.from_pydict(columns, WAITING)


def instructions(source: Path, rows: Collection[int]) -> dict[int, str]:
    """Read the instructions of some of the rows that `tokenise` wrote."""
    return {
        row: text
        for batch in _waiting_batches(source)
        for row, text in zip(batch["row"].to_pylist(), batch["instruction"].to_pylist(), strict=True)
        if row in rows
    }


def write_parts(source: Path, candidates: Sequence[Candidate], targets: Mapping[str, Path]) -> None:
    """Write the kept rows of each part, in their order.

    Args:
        source: File that `tokenise` wrote.
        candidates: Candidates that it returned, decided upon.
        targets: Parquet file of SCHEMA for each part.
    """
    for part, target in targets.items():
        with pq.ParquetWriter(target, SCHEMA) as writer:
            for group in _groups(_kept_batches(source, candidates, part)):
                writer.write_table(group)


def _kept_batches(source: Path, candidates: Sequence[Candidate], part: str) -> Iterator[pa.RecordBatch]:
    members = iter(candidates)
    for batch in _waiting_batches(source):
        decided = itertools.islice(members, batch.num_rows)
        chosen = pa.array([not c.reason and c.part == part for c in decided], pa.bool_())
        yield batch.filter(chosen).select(SCHEMA.names)


def _waiting_batches(source: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(source)) as stream, pa.ipc.open_stream(stream) as reader:
        yield from reader


def _groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Join batches to tables of GROUP rows; the last holds what is left, or no row if there is none at all."""
    table = SCHEMA.empty_table()
    for batch in batches:
        table = pa.concat_tables([table, pa.Table.from_batches([batch], SCHEMA)])
        while table.num_rows > GROUP:
            yield table.slice(0, GROUP).combine_chunks()
            table = table.slice(GROUP)
    yield table.combine_chunks()
