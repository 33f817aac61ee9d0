"""Stage `benchmarks`: reads evaluation sets of any source into one format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.config import Fields, Scoring
from minillm.data.row_schemas import schema_of
from minillm.data.rows import evenly, field_with_value, read_set, text_field
from minillm.data.turns import rows_of, turns_of
from minillm.errors import StageError
from minillm.files import read_json_lines, write_json_lines
from minillm.metrics.by_name import require_seen
from minillm.nearest import suggestion
from minillm.patterns import group_in
from minillm.stages.base import Job, Summary
from minillm.stages.reading import Benchmarks
from minillm.store.artifacts import CLOCKED

CONTEXT_FIELDS = ("context", "input")
"""Fields that may hold the context if the configuration names none; likewise below."""
REFERENCE_FIELDS = ("output", "response")
TOPIC_FIELDS = ("topic", "category")
PAPER = Scoring()
"""Rouge-L."""


def run(job: Job[Benchmarks]) -> Summary:
    """Write NAME.jsonl for each benchmark; the summary has its number of prompts.

    Raises:
        StageError: A benchmark has no rows, none about a topic asked for, a row without instruction or reference, or
            references that its metric cannot see.
    """
    settings = job.settings
    summary: Summary = {}
    for name, fields in settings.fields.items():
        scoring = settings.scoring.get(name, PAPER)
        rows = read_benchmark(name, job.inputs[f"benchmark/{name}"], fields, scoring)
        if name in settings.topics:
            rows = select_topics(name, rows, settings.topics[name])
        require_references(name, rows)
        rows = at_most(rows, settings.prompts.get(name))
        if name in settings.scoring:
            require_seen(
                f"benchmark {name}",
                [row["references"] for row in rows if row["references"]],
                scoring.metric,
                f"set evaluation.benchmarks.{name}.metric to one that sees them",
            )
        if scoring.pattern is not None:
            found = [group_in(scoring.pattern, text) is not None for row in rows for text in row["references"]]
            print(
                f"benchmark {name}: the pattern is found in {sum(found)} of {len(found)} references; "
                "the others are themselves what it must find",
                flush=True,
            )
        write_json_lines(job.output / f"{name}.jsonl", rows)
        summary[name] = float(len(rows))
    return summary


def read_benchmark(name: str, path: Path, fields: Fields, scoring: Scoring = PAPER) -> list[dict[str, Any]]:
    """Read rows {"index", "instruction", "context", "references", "topic"}. A `prompt` in the source is not used.

    For the metric json_schema, a row also has its schema as `json_schema`. A conversation becomes a row for each turn,
    with the fields of `minillm.data.turns.rows_of`.

    Raises:
        StageError: The benchmark has no rows, or a row has no instruction, reference or schema, or a reference that is
            not valid against the schema.
    """

    def parse(row: dict[str, Any]) -> dict[str, Any]:
        told = turns_of(row, fields)
        references = _references(row, fields) if told is None else [text for of in told[0] for text in of.references]
        shared: dict[str, Any] = {"topic": _named_or_usual(row, fields.topic, TOPIC_FIELDS)}
        if scoring.metric == "json_schema":
            shared["json_schema"] = schema_of(row, fields.json_schema, scoring.json_schema, references)
        if told is not None:
            return {"told": (*told, shared)}
        return {
            "instruction": text_field(row, fields.instruction),
            "context": _named_or_usual(row, fields.context, CONTEXT_FIELDS),
            "references": references,
            **shared,
        }

    rows = read_set(f"benchmark {name}", path, parse)
    if len({"told" in row for row in rows}) > 1:
        raise StageError(
            f"benchmark {name}: {path} has rows with an instruction and conversations; make them two files"
        )
    if "told" not in rows[0]:
        return rows
    turns = [turn for row in rows for turn in rows_of(row["index"], *row["told"])]
    return [{"index": index, **turn} for index, turn in enumerate(turns)]


def select_topics(name: str, rows: list[dict[str, Any]], topics: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows about some topics, numbered anew.

    Raises:
        StageError: No row is about one of the topics.
    """
    known = {row["topic"] for row in rows if row["topic"]}
    for topic in topics:
        if topic not in known:
            raise StageError(
                f"evaluation.benchmarks.{name}.topics: no row is about `{topic}`; {suggestion(topic, known)}"
            )
    return numbered([row for row in rows if row["topic"] in topics])


def at_most(rows: Sequence[dict[str, Any]], count: int | None) -> list[dict[str, Any]]:
    """Return so many of the rows, or of the conversations with all their turns, evenly spaced and numbered anew."""
    places = [row.get("conversation", row["index"]) for row in rows]
    chosen = set(evenly(list(dict.fromkeys(places)), count))
    return numbered([row for place, row in zip(places, rows, strict=True) if place in chosen])


def numbered(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows whose `index` counts from 0."""
    return [{**row, "index": index} for index, row in enumerate(rows)]


def require_references(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that an answer can be scored in every conversation.

    Raises:
        StageError: A conversation has no reference at all.
    """
    scored = {row.get("conversation") for row in rows if row["references"]}
    for row in rows:
        if row.get("conversation") not in scored:
            raise StageError(
                f"benchmark {name}: conversation {row['conversation']}, counted from 0, has no reference for any turn, "
                f"so nothing of it can be scored; give one, or leave it out (evaluation.benchmarks.{name}.topics)"
            )


def _named_or_usual(value: dict[str, Any], name: str | None, usual: Sequence[str]) -> str:
    """Text of a field that the configuration names, or else of one of the usual fields if there is one."""
    return text_field(value, name) if name else text_field(value, *usual, optional=True)


def _references(value: dict[str, Any], fields: Fields) -> list[str]:
    name = fields.references or field_with_value(value, *REFERENCE_FIELDS)
    if not isinstance(value.get(name), list):
        return [text_field(value, name)]
    if not value[name]:
        raise ValueError(f"`{name}` is an empty list; give at least one reference answer")
    return [text_field({name: reference}, name) for reference in value[name]]


def load_benchmarks(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Load the rows of every benchmark in an artifact, by name."""
    return {path.stem: read_json_lines(path) for path in sorted(directory.glob("*.jsonl")) if path.name not in CLOCKED}
