"""Examples of the filter: tokenised in batches into a file, and distributed from there to their parts.

However many rows there are, texts and tokens are in memory only a batch at a time.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from minillm.config.data import Turns
from minillm.data.candidates import Candidate
from minillm.data.chat import ChatTemplate
from minillm.data.decontamination import digest, normalise, question
from minillm.data.encoding import Encoded
from minillm.data.rows import Malformed, Row
from minillm.data.text_template import TextTemplate
from minillm.data.tokenising import PIECE, batches

SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "category": pa.string(),
        "prompt": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "response_ids": pa.list_(pa.int32()),
        "turns": pa.list_(pa.struct({"start": pa.int32(), "end": pa.int32(), "text": pa.string()})),
        "apart": pa.list_(
            pa.struct(
                {
                    "left": pa.int32(),
                    "prompt_ids": pa.list_(pa.int32()),
                    "response_ids": pa.list_(pa.int32()),
                    "text": pa.string(),
                }
            )
        ),
    }
)
"""Schema of the rows that are kept, with the fields of `Encoded`."""
WAITING = SCHEMA.append(pa.field("instruction", pa.string()))
"""Schema of the file in which rows wait until they are decided upon."""
GROUP = 1 << 15
"""Rows in a row group of a part's file; so many are in memory at once."""
MARGIN = 16
"""Tokens that cutting a text may add: its beginning alone may have a few more than it has within the text."""

FEWEST_CHARACTERS = 1000
"""Characters that are kept of every message of a conversation when its tokens are counted."""
TOO_LONG_APART = "an earlier answer is left out: with a prompt of its own, it is longer than data.max_tokens"
"""Note of a row with such an answer."""


def tokenise(
    rows: Iterable[Row], template: TextTemplate | ChatTemplate, turns: Turns, max_tokens: int, target: Path
) -> tuple[list[Candidate], list[Malformed], Counter[str]]:
    """Render and tokenise rows into a file.

    Args:
        rows: Rows to write, in order.
        template: Template of prompts and examples.
        turns: Answers of a conversation that are learnt.
        max_tokens: Longest prompt or response whose tokens are kept; a longer row is dropped later.
        target: File for an Arrow stream of WAITING.

    Returns:
        Candidates in the order of the file, the rows that the template refuses, and the number of rows with each note.
    """
    candidates: list[Candidate] = []
    refused: list[Malformed] = []
    notes: Counter[str] = Counter()
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, WAITING) as writer:
        for batch in batches(rows, _characters):
            whole: list[tuple[Row, Encoded]] = []
            for row, encoded in zip(batch, _encode(batch, template, turns, max_tokens), strict=True):
                if isinstance(encoded, str):
                    refused.append(Malformed(row.row, row.file, row.line, encoded))
                    continue
                encoded = _with_short_answers(encoded, max_tokens)
                whole.append((row, encoded))
                notes.update(dict.fromkeys(encoded.notes, 1))
                candidates.append(
                    Candidate(
                        row.row,
                        row.category,
                        texts=digest(*map(normalise, row.texts)),
                        questions=tuple(digest(question(asked)) for asked in row.questions),
                        longest_prompt=len(encoded.prompt_ids) + encoded.turns[-1].start,
                        prompt_tokens=len(encoded.prompt_ids) + len(encoded.response_ids) - encoded.learnt,
                        response_tokens=encoded.learnt,
                    )
                )
            writer.write_batch(_waiting(whole, max_tokens))
    return candidates, refused, notes


def _characters(row: Row) -> int:
    return sum(min(len(text), PIECE) for text in row.texts)


def _encode(
    rows: Sequence[Row], template: TextTemplate | ChatTemplate, turns: Turns, max_tokens: int
) -> list[Encoded | str]:
    """Tokenise rows. The beginning of a far too long text is enough to tell that it is too long."""
    short = list(map(_shortened, rows))
    encoded = template.examples(short, turns)
    for number, row in enumerate(rows):
        if short[number] != row and not _is_long(encoded[number], max_tokens + MARGIN):
            encoded[number] = template.examples([row], turns)[0]
    return encoded


def _shortened(row: Row) -> Row:
    """Return a row with its texts cut, so that those of a conversation have about PIECE characters together."""
    texts = {name: getattr(row, name)[:PIECE] for name in ("instruction", "context", "response")}
    if row.conversation is None:
        return replace(row, **texts)
    most = max(PIECE // len(row.messages), FEWEST_CHARACTERS)
    messages = tuple({**message, "content": message["content"][:most]} for message in row.messages)
    return replace(row, **texts, conversation=replace(row.conversation, messages=messages))


def _with_short_answers(encoded: Encoded, max_tokens: int) -> Encoded:
    """Return an example without the answers apart that are too long: the row itself is not dropped for them."""
    short = tuple(of for of in encoded.apart if len(of.prompt_ids) + len(of.response_ids) <= max_tokens)
    if len(short) == len(encoded.apart):
        return encoded
    return replace(encoded, apart=short, notes=(*encoded.notes, TOO_LONG_APART))


def _is_long(encoded: Encoded | str, tokens: int) -> bool:
    return isinstance(encoded, Encoded) and max(len(encoded.prompt_ids), len(encoded.response_ids)) > tokens


def _waiting(rows: Sequence[tuple[Row, Encoded]], max_tokens: int) -> pa.RecordBatch:
    nothing = Encoded("", [], [], ())
    kept = [
        (replace(row, instruction=""), nothing) if _is_long(encoded, max_tokens) else (row, encoded)
        for row, encoded in rows
    ]
    columns = {
        "row": [row.row for row, _ in kept],
        "category": [row.category for row, _ in kept],
        "prompt": [encoded.prompt for _, encoded in kept],
        "prompt_ids": [encoded.prompt_ids for _, encoded in kept],
        "response_ids": [encoded.response_ids for _, encoded in kept],
        "turns": [[turn._asdict() for turn in encoded.turns] for _, encoded in kept],
        "apart": [[of._asdict() for of in encoded.apart] for _, encoded in kept],
        "instruction": [row.instruction for row, _ in kept],
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
