"""Stage `benchmarks`: evaluation sets of any source in one format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minillm.config import Fields
from minillm.data.records import Record
from minillm.data.rows import field_with_value, text_field
from minillm.data.tables import read_records
from minillm.errors import StageError
from minillm.metrics.by_name import require_seen
from minillm.nearest import suggestion
from minillm.stages import Benchmarks, Job, Summary
from minillm.store.artifacts import CLOCKED

CONTEXT = ("context", "input")
"""Where the context stands, if it has one and no other name is given."""

REFERENCES = ("output", "response")

TOPIC = ("topic", "category")


def run(job: Job[Benchmarks]) -> Summary:
    """Write NAME.jsonl per benchmark; the summary has the number of prompts of each.

    Raises:
        StageError: If a benchmark has no rows, none about a topic asked for, a row no instruction or reference, or
            references that its metric cannot see.
    """
    settings = job.settings
    summary: Summary = {}
    for name, fields in settings.fields.items():
        rows = read_benchmark(name, job.inputs[f"benchmark/{name}"], fields)
        if name in settings.topics:
            rows = of_topics(name, rows, settings.topics[name])
        if name in settings.metrics:
            require_seen(
                f"benchmark {name}",
                [row["references"] for row in rows],
                settings.metrics[name],
                f"set evaluation.benchmarks.{name}.metric to one that sees them",
            )
        lines = [json.dumps(row) + "\n" for row in rows]
        (job.output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        summary[name] = float(len(rows))
    return summary


def read_benchmark(name: str, path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Rows {"index", "instruction", "context", "references", "topic"}; the source's own `prompt` is not used.

    Raises:
        StageError: As `run`.
    """
    rows = []
    for index, record in enumerate(read_records(path)):
        try:
            rows.append({"index": index, **_parse(record, fields)})
        except ValueError as error:
            raise StageError(f"benchmark {name}, {record.file}:{record.line}: {error}") from error
    if not rows:
        raise StageError(f"benchmark {name}: {path} has no rows; mend the file or leave the benchmark out")
    return rows


def of_topics(name: str, rows: list[dict[str, Any]], topics: Sequence[str]) -> list[dict[str, Any]]:
    """The rows about some topics, numbered anew.

    Raises:
        StageError: No row is about one of the topics.
    """
    known = {row["topic"] for row in rows if row["topic"]}
    for topic in topics:
        if topic not in known:
            raise StageError(
                f"evaluation.benchmarks.{name}.topics: no row is about `{topic}`; {suggestion(topic, known)}"
            )
    kept = [row for row in rows if row["topic"] in topics]
    return [{**row, "index": index} for index, row in enumerate(kept)]


def _parse(record: Record, fields: Fields) -> dict[str, Any]:
    value = record.value
    if record.problem is not None:
        raise ValueError(record.problem)
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {type(value).__name__}")
    return {
        "instruction": text_field(value, fields.instruction),
        "context": text_field(value, fields.context) if fields.context else text_field(value, *CONTEXT, optional=True),
        "references": _references(value, fields),
        "topic": text_field(value, fields.topic) if fields.topic else text_field(value, *TOPIC, optional=True),
    }


def _references(value: dict[str, Any], fields: Fields) -> list[str]:
    name = fields.references or field_with_value(value, *REFERENCES)
    if not isinstance(value.get(name), list):
        return [text_field(value, name)]
    if not value[name]:
        raise ValueError(f"`{name}` is an empty list; give at least one reference answer")
    return [text_field({name: reference}, name) for reference in value[name]]


def load_benchmarks(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of every benchmark of an artifact, by name."""
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(directory.glob("*.jsonl"))
        if path.name not in CLOCKED
    }
