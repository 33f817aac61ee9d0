"""Stage `filter`: drops rows that must not be trained on, with a reason each, and splits and tokenises the rest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from minillm.data.benchmarks import load_benchmarks
from minillm.data.candidates import Candidate, drop_duplicates, drop_long, drop_overlaps, kept, split_at_random
from minillm.data.decontamination import Overlap
from minillm.data.examples import instructions, tokenise, write_parts
from minillm.data.filter_report import Example, dropped_table, length_table, write_report
from minillm.data.learnt_turns import prompts_of
from minillm.data.prompts import template_of
from minillm.data.rows import Malformed, Row, format_of, read_examples, read_split, refuse_malformed
from minillm.data.text_template import TextTemplate
from minillm.errors import StageError
from minillm.files import write_json_lines
from minillm.metrics.by_name import require_seen
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.reading import Filter

SHOWN_EXAMPLES = 3
OUTPUT_PARTS = ("train", "validation", "test")


def run(job: Job[Filter]) -> Summary:
    """Write train, validation and test .parquet, the dropped rows with reasons, length statistics and filtering.md.

    Raises:
        StageError: Too much is malformed, the split does not fit, train or validation ends up empty, or a metric that
            selects weights cannot see the validation rows.
    """
    settings = job.settings
    source = job.inputs["instructions"]
    total, malformed = _look_through(source, settings)
    parts = read_split(job.inputs["split"], total) if "split" in job.inputs else None
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    template = template_of(shared.tokenizer, settings.template, shared.ends)
    form = format_of(source, settings.fields)
    if form != "instruction" and isinstance(template, TextTemplate):
        raise StageError(
            f"data.instructions has conversations (`{form}`), which only a chat template can render, and "
            "data.template is a text: take a model or `tokenizer.from` that has one, and leave data.template out"
        )
    print(f"{total} rows read ({form}), {len(malformed)} of them malformed; tokenising", flush=True)
    waiting = job.work / "rows.arrow"
    rows = (row for row in read_examples(source, settings.fields) if isinstance(row, Row))
    candidates, refused, notes = tokenise(rows, template, settings.turns, settings.max_tokens, waiting)
    malformed = sorted([*malformed, *refused], key=lambda row: row.row)
    refuse_malformed(malformed, total, settings.max_malformed_share)
    for note, count in notes.items():
        print(f"{count} rows: {note}", flush=True)
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
    references = prompts_of(pd.read_parquet(job.output / "validation.parquet"))["response"]
    for metric in settings.selected_by:
        require_seen(
            "the validation rows",
            [[reference] for reference in references],
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
    shown = shown_examples(job.output / "train.parquet", shared.tokenizer)
    write_report(job.output / "filtering.md", candidates, malformed, overlaps, dropped, lengths, form, notes, shown)
    counts = {part: float(len(kept(candidates, part))) for part in OUTPUT_PARTS}
    return {
        "format": form,
        "rows": float(total),
        "malformed": float(len(malformed)),
        "dropped": total - sum(counts.values()),
        "contaminated": float(len(overlaps)),
        **counts,
    }


def shown_examples(train: Path, tokenizer: Any) -> list[Example]:
    """Return the first training rows: what is prompt, what is learnt, and what ends it."""
    first = next(pq.ParquetFile(train).iter_batches(SHOWN_EXAMPLES)).to_pandas()
    return [
        [("Prompt", row["prompt"]), *_parts(row["response_ids"], row["turns"], tokenizer)]
        for _, row in first.iterrows()
    ]


def _parts(tokens: NDArray[np.int32], turns: Sequence[Mapping[str, Any]], tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Yield what follows a prompt: what is learnt, what ends it, and what is read before the next answer."""
    place = 0
    for turn in turns:
        if place:
            yield "Read", tokenizer.decode(tokens[place : turn["start"]])
        place = turn["end"]
        yield "Learnt", tokenizer.decode(tokens[turn["start"] : place - 1])
        yield "End", tokenizer.decode(tokens[place - 1 : place])


def _look_through(source: Path, settings: Filter) -> tuple[int, list[Malformed]]:
    """Count the rows and collect the malformed ones, before the others are tokenised, which takes longer."""
    total = 0
    malformed: list[Malformed] = []
    for row in read_examples(source, settings.fields):
        total += 1
        if isinstance(row, Malformed):
            malformed.append(row)
    refuse_malformed(malformed, total, settings.max_malformed_share)
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
