"""Stage `filter`: what must not be trained on goes, with its reason; the rest is split and tokenised."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from minillm.data.benchmarks import load_benchmarks
from minillm.data.candidates import Candidate, drop_duplicates, drop_long, drop_overlaps, encode, kept, split_at_random
from minillm.data.decontamination import Overlap
from minillm.data.filter_report import dropped_table, length_table, write_report
from minillm.data.rows import read_rows, read_split, refuse_malformed
from minillm.errors import StageError
from minillm.evaluation.metrics import require_seen
from minillm.stages import Filter, Job

PARTS = ("train", "validation", "test")
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


def run(job: Job) -> dict[str, float | str]:
    """Write train, validation and test .parquet, what was dropped and why, length statistics and filtering.md.

    Raises:
        StageError: If too much is malformed, the split does not fit, train or validation ends up empty, or a metric
            that selects weights cannot see the validation rows.
    """
    settings = job.settings
    assert isinstance(settings, Filter)
    rows, malformed = read_rows(job.inputs["instructions"])
    total = len(rows) + len(malformed)
    refuse_malformed(malformed, total, settings.max_malformed_share)
    print(f"{total} rows read, {len(malformed)} of them malformed; tokenising", flush=True)
    candidates = encode(rows, settings.template, job.inputs["tokenizer"])
    if "split" in job.inputs:
        _apply_split(candidates, read_split(job.inputs["split"], total))
    drop_duplicates(candidates)
    drop_long(candidates, settings.max_prompt_tokens, settings.max_tokens)
    if "split" not in job.inputs:
        split_at_random(candidates, settings.validation_size or 0, settings.test_size or 0, settings.seed or 0)
    overlaps = drop_overlaps(candidates, load_benchmarks(job.inputs["benchmarks"]))
    for metric in settings.selected_by:
        require_seen(
            "the validation rows",
            [[candidate.row.response] for candidate in kept(candidates, "validation")],
            metric,
            "set select_by of teacher.training, student.initial and methods.NAME.training to another",
        )
    dropped = dropped_table(candidates, len(malformed))
    for part in PARTS:
        _write_part(job.output / f"{part}.parquet", part, kept(candidates, part), dropped, settings)
    lengths = length_table(kept(candidates))
    malformed = [replace(m, file=Path(m.file).name) for m in malformed]  # the result must not depend on the folder
    dropped.to_csv(job.output / "dropped.csv")
    lengths.to_csv(job.output / "lengths.csv", index=False)
    _write_lines(job.output / "malformed.jsonl", [asdict(m) for m in malformed])
    _write_lines(job.output / "decontaminated.jsonl", _described(overlaps, candidates))
    write_report(job.output / "filtering.md", candidates, malformed, overlaps, dropped, lengths)
    counts = {part: float(len(kept(candidates, part))) for part in PARTS}
    return {
        "rows": float(total),
        "malformed": float(len(malformed)),
        "dropped": total - sum(counts.values()),
        "contaminated": float(len(overlaps)),
        **counts,
    }


def _apply_split(candidates: Sequence[Candidate], parts: Sequence[str]) -> None:
    for candidate in candidates:
        part = parts[candidate.row.row]
        candidate.part = "validation" if part == "dev" else part
        candidate.drop_if(part == "unused", "left out by the split")


def _write_part(path: Path, part: str, examples: list[Candidate], dropped: pd.DataFrame, settings: Filter) -> None:
    if not examples and part != "test":
        raise StageError(
            f"no {part} row is left after filtering; what was dropped, by reason and category:\n\n"
            f"{dropped.to_markdown()}\n\nThe limits are data.max_prompt_tokens {settings.max_prompt_tokens} and "
            f"data.max_tokens {settings.max_tokens}; also look at data.split, or data.validation_size and "
            "data.test_size"
        )
    columns = {
        "row": [e.row.row for e in examples],
        "category": [e.row.category for e in examples],
        "prompt": [e.prompt for e in examples],
        "response": [e.row.response for e in examples],
        "prompt_ids": [e.prompt_ids for e in examples],
        "response_ids": [e.response_ids for e in examples],
    }
    pq.write_table(pa.table(columns, schema=SCHEMA), path)


def _described(overlaps: Sequence[Overlap], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    by_row = {candidate.row.row: candidate for candidate in candidates}
    return [
        {
            "row": overlap.row,
            "part": by_row[overlap.row].part,
            "category": by_row[overlap.row].row.category,
            "instruction": by_row[overlap.row].row.instruction,
            "benchmark": overlap.found_in,
            "benchmark_row": overlap.found_row,
        }
        for overlap in overlaps
    ]


def _write_lines(path: Path, values: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
