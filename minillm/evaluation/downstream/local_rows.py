"""Local rows in place of the data sets of the harness's tasks: read, checked and dealt out within a group."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minillm.data.rows import fields_of
from minillm.data.tables import read_records
from minillm.errors import StageError
from minillm.nearest import suggestion

Row = dict[str, Any]


def read_rows(field: str, path: Path) -> list[Row]:
    """Read rows that all have the same fields, like those of a data set on the hub.

    Args:
        field: Field of the configuration, for error messages.
        path: File in any format that `read_records` knows.

    Raises:
        StageError: If there is no row, a row cannot be read, or its fields differ from those of the first.
    """
    rows: list[Row] = []
    for record in read_records(path):
        try:
            rows.append(fields_of(record))
        except ValueError as error:
            raise StageError(f"{field}: {record.file}:{record.line}: {error}") from error
        if others := sorted(map(str, rows[-1].keys() ^ rows[0].keys())):
            raise StageError(
                f"{field}: {record.file}:{record.line}: its fields are not those of the first row; they differ in "
                f"{', '.join(others)}"
            )
    if not rows:
        raise StageError(f"{field}: {path} has no rows; mend the file or leave it out")
    return rows


def deal(field: str, rows: list[Row], part: str | None, tasks: Mapping[str, str | None]) -> dict[str, list[Row]]:
    """Return the rows of each task; without `part`, every task gets all of them.

    Args:
        field: Field of the configuration, for error messages.
        rows: Rows from `read_rows`.
        part: Field of a row that says which task it belongs to.
        tasks: Value of that field for each task (the harness's `dataset_name`), by the task's name.

    Raises:
        StageError: If several data sets have no `part` to tell them apart, a task gets no row, or a row no task.
    """
    if part is None:
        if len(set(tasks.values())) > 1:
            raise StageError(
                f"{field}: it stands for {len(tasks)} tasks that have data sets of their own "
                f"({', '.join(map(str, list(tasks.values())[:3]))} …); set `part` to the field that names them"
            )
        return dict.fromkeys(tasks, rows)
    if part not in rows[0]:
        raise StageError(f"{field}: `part` is {part!r}, but rows have no such field; {suggestion(part, rows[0])}")
    dealt: dict[str, list[Row]] = {}
    for row in rows:
        dealt.setdefault(str(row[part]), []).append(row)
    wanted = {str(name) for name in tasks.values()}
    if strange := sorted(set(dealt) - wanted):
        raise StageError(f"{field}: no task has rows with {part} = {strange[0]!r}; {suggestion(strange[0], wanted)}")
    if missing := sorted(wanted - set(dealt)):
        raise StageError(
            f"{field}: there is no row with {part} = {', '.join(missing[:5])}{' …' * (len(missing) > 5)}; "
            "add some, or ask for the other tasks of the group by their names"
        )
    return {task: dealt[str(name)] for task, name in tasks.items()}
