"""Stage `filter`: drops rows that must not be trained on, with a reason each, and splits and tokenises the rest."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoTokenizer

from minillm.data.benchmarks import load_benchmarks
from minillm.data.candidates import Candidate, drop_duplicates, drop_long, drop_overlaps, kept, split_at_random
from minillm.data.decontamination import Overlap
from minillm.data.examples import instructions, tokenise, write_parts
from minillm.data.filter_report import dropped_table, length_table, write_report
from minillm.data.rows import InstructionRow, Malformed, read_instruction_rows, read_split, refuse_malformed
from minillm.errors import StageError
from minillm.files import write_json_lines
from minillm.metrics.by_name import require_seen
from minillm.stages.base import Job, Summary
from minillm.stages.reading import Filter

OUTPUT_PARTS = ("train", "validation", "test")


def run(job: Job[Filter]) -> Summary:
    """Write train, validation and test .parquet, the dropped rows with reasons, length statistics and filtering.md.

    Raises:
        StageError: Too much is malformed, the split does not fit, train or validation ends up empty, or a metric that
            selects weights cannot see the validation rows.
    """
    settings = job.settings
    source = job.inputs["instructions"]
    total, malformed = _look_through(source, settings.max_malformed_share)
    parts = read_split(job.inputs["split"], total) if "split" in job.inputs else None
    print(f"{total} rows read, {len(malformed)} of them malformed; tokenising", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    waiting = job.work / "rows.arrow"
    rows = (row for row in read_instruction_rows(source) if isinstance(row, InstructionRow))
    candidates = tokenise(rows, settings.template, tokenizer, settings.max_tokens, waiting)
    if parts is not None:
        _apply_split(candidates, parts)
    drop_duplicates(candidates)
    drop_long(candidates, settings.max_prompt_tokens, settings.max_tokens)
    if parts is None:
        split_at_random(candidates, settings.validation_size or 0, settings.test_size or 0, settings.seed or 0)
    overlaps = drop_overlaps(candidates, load_benchmarks(job.inputs["benchmarks"]))
    dropped = dropped_table(candidates, len(malformed))
    _require_examples(candidates, dropped, settings)
    write_parts(waiting, candidates, {part: job.output / f"{part}.parquet" for part in OUTPUT_PARTS})
    responses = pd.read_parquet(job.output / "validation.parquet", columns=["response"])["response"]
    for metric in settings.selected_by:
        require_seen(
            "the validation rows",
            [[response] for response in responses],
            metric,
            "set select_by of teacher.training, student.initial and methods.NAME.training to another",
        )
    lengths = length_table(kept(candidates))
    malformed = [replace(m, file=Path(m.file).name) for m in malformed]  # the result must not depend on the folder
    dropped.to_csv(job.output / "dropped.csv", encoding="utf-8")
    lengths.to_csv(job.output / "lengths.csv", index=False, encoding="utf-8")
    write_json_lines(job.output / "malformed.jsonl", [asdict(m) for m in malformed])
    write_json_lines(job.output / "decontaminated.jsonl", _described(overlaps, candidates, waiting))
    waiting.unlink()
    write_report(job.output / "filtering.md", candidates, malformed, overlaps, dropped, lengths)
    counts = {part: float(len(kept(candidates, part))) for part in OUTPUT_PARTS}
    return {
        "rows": float(total),
        "malformed": float(len(malformed)),
        "dropped": total - sum(counts.values()),
        "contaminated": float(len(overlaps)),
        **counts,
    }


def _look_through(source: Path, max_malformed_share: float) -> tuple[int, list[Malformed]]:
    """Count the rows and collect the malformed ones, before the others are tokenised, which takes longer."""
    total = 0
    malformed: list[Malformed] = []
    for row in read_instruction_rows(source):
        total += 1
        if isinstance(row, Malformed):
            malformed.append(row)
    refuse_malformed(malformed, total, max_malformed_share)
    return total, malformed


def _apply_split(candidates: Sequence[Candidate], parts: Sequence[str]) -> None:
    for candidate in candidates:
        part = parts[candidate.row]
        candidate.part = "validation" if part == "dev" else part
        candidate.drop_if(part == "unused", "left out by the split")


def _require_examples(candidates: Sequence[Candidate], dropped: pd.DataFrame, settings: Filter) -> None:
    for part in ("train", "validation"):
        if not kept(candidates, part):
            raise StageError(
                f"no {part} row is left after filtering; what was dropped, by reason and category:\n\n"
                f"{dropped.to_markdown()}\n\nThe limits are data.max_prompt_tokens {settings.max_prompt_tokens} and "
                f"data.max_tokens {settings.max_tokens}; also look at data.split, or data.validation_size and "
                "data.test_size"
            )


def _described(overlaps: Sequence[Overlap], candidates: Sequence[Candidate], waiting: Path) -> list[dict[str, Any]]:
    by_row = {candidate.row: candidate for candidate in candidates}
    asked = instructions(waiting, {overlap.row for overlap in overlaps}) if overlaps else {}
    return [
        {
            "row": overlap.row,
            "part": by_row[overlap.row].part,
            "category": by_row[overlap.row].category,
            "instruction": asked[overlap.row],
            "benchmark": overlap.found_in,
            "benchmark_row": overlap.found_row,
        }
        for overlap in overlaps
    ]
