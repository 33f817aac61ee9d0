"""Stage `downstream_tasks`: find the harness's tasks and check them with their data before anything is trained."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from minillm.config import Template
from minillm.data.chat import ChatTemplate
from minillm.data.prompts import template_of
from minillm.durable import write_atomically
from minillm.errors import StageError
from minillm.evaluation.downstream.checks import FIELD, check, unfit
from minillm.evaluation.downstream.harness import (
    PLAN,
    TASKS,
    Definition,
    LocalRows,
    Plan,
    beneath,
    load,
    rows_file,
    task_manager,
)
from minillm.evaluation.downstream.local_rows import deal, read_rows
from minillm.files import read_json, write_json, write_json_lines
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.reading import SIZES, TOKENIZER, DownstreamTasks, TaskSize

SPLITS = {"test": ("rows", "source"), "examples": ("examples", "examples")}
"""Splits of a task with local rows: for each, the kind of input and the field of `local` that gives it."""


def run(job: Job[DownstreamTasks]) -> Summary:
    """Write plan.json, sizes.json and the local rows by task; the summary has the number of questions of each task.

    Raises:
        StageError: If a task is unknown, cannot be loaded, is not for a language model alone, or gets unfit rows.
    """
    settings = job.settings
    index = TaskManager().task_index
    require_known(settings.tasks, index)
    made_of = {name: beneath(index, name) for name in settings.tasks}
    folders = {d.yaml_path.parent for found in made_of.values() for d in found if d.yaml_path is not None}
    plan = Plan(
        harness=settings.harness,
        tasks=settings.tasks,
        few_shot=settings.few_shot,
        folders=tuple(sorted(map(_relative, folders))),
        local=_write_local(job, settings, made_of),
    )
    manager = task_manager(plan, job.output, job.work)
    prepared = [path for name, path in job.inputs.items() if name.startswith("prepared/")]
    positions = _positions(prepared)
    if settings.template is not None:
        require_chat_templates(prepared, settings.template)
    summary: Summary = {"harness": settings.harness}
    sizes: dict[str, dict[str, Any]] = {}
    for name in settings.tasks:
        loaded = obtain(manager, name, settings)
        for task in loaded["tasks"].values():
            check(task, plan.local.get(task.task_name), positions)
            sizes[task.task_name] = size(task).model_dump()
        summary[f"questions/{name}"] = sum(len(task.eval_docs) for task in loaded["tasks"].values())
    write_json(job.output / SIZES, sizes)
    write_atomically(job.output / PLAN, plan.model_dump_json(indent=2))
    return summary


def size(task: Any) -> TaskSize:
    """Return the size of a task as `harness.load` returns it."""
    return TaskSize(questions=len(task.eval_docs), shots=task.get_config("num_fewshot"), kind=task.OUTPUT_TYPE)


def require_known(tasks: Sequence[str], index: Mapping[str, Definition]) -> None:
    """Check that the harness has these tasks, groups or tags.

    Raises:
        StageError: If one is missing; the message suggests similar names.
    """
    for name in tasks:
        if name not in index:
            near = ", ".join(difflib.get_close_matches(name, index, n=5))
            hint = f"near names: {near}" if near else "`lm_eval ls tasks` names all"
            raise StageError(f"{FIELD}.tasks: lm-evaluation-harness has no task {name!r}; {hint}")


def obtain(manager: TaskManager, name: str, settings: DownstreamTasks) -> TaskDict:
    """Load a task, or the tasks of a group or tag, with their data.

    Raises:
        StageError: If the hub does not answer or has different data, or if local rows do not fit the task.
    """
    try:
        return load(manager, name, settings.few_shot)
    except Exception as error:  # the harness and the code of its tasks fail in many ways
        reason = repr(error).splitlines()[0]
        if name in settings.changes:
            raise unfit(name, reason) from error
        raise StageError(
            f"{FIELD}.tasks: {name} cannot be loaded ({reason}); its data set comes from the hub: connect, set "
            "HF_ENDPOINT to a mirror, copy the cache of a connected machine, or give its rows as "
            f"{FIELD}.local.{name}.source"
        ) from error


def require_chat_templates(prepared: Iterable[Path], template: Template) -> None:
    """Check that questions can be asked through a chat template, as the run's other prompts are.

    Raises:
        StageError: The run's prompts are a text.
    """
    for path in prepared:
        shared = load_shared_tokenizer(path / TOKENIZER)
        if not isinstance(template_of(shared.tokenizer, template, shared.ends), ChatTemplate):
            raise StageError(
                f"{FIELD}.chat_template is true, but the run's prompts are a text; set data.template: chat with a "
                f"tokenizer that has a chat template, or {FIELD}.chat_template: false"
            )


def _write_local(
    job: Job[DownstreamTasks], settings: DownstreamTasks, made_of: Mapping[str, Sequence[Definition]]
) -> dict[str, LocalRows]:
    """Write the local rows of each task, or of every task of a group or tag."""
    local: dict[str, LocalRows] = {}
    for name, changes in settings.changes.items():
        tasks = [definition for definition in made_of[name] if definition.kind.name == "TASK"]
        if not tasks or any(definition.kind.name == "PY_TASK" for definition in made_of[name]):
            raise StageError(f"{FIELD}.local.{name}: its data is made by code, which rows cannot replace; drop it")
        if twice := [definition.name for definition in tasks if definition.name in local]:
            raise StageError(f"{FIELD}.local.{name}: another entry of `local` has rows for {twice[0]} too; drop one")
        data_sets = {definition.name: definition.cfg.get("dataset_name") for definition in tasks}
        given = [split for split, (kind, _) in SPLITS.items() if f"{kind}/{name}" in job.inputs]
        for split in given:
            kind, key = SPLITS[split]
            field = f"{FIELD}.local.{name}.{key}"
            rows = read_rows(field, job.inputs[f"{kind}/{name}"])
            for task, task_rows in deal(field, rows, settings.parts.get(name), data_sets).items():
                path = rows_file(job.output, task, split)
                path.parent.mkdir(exist_ok=True)
                write_json_lines(path, task_rows)
        for definition in tasks:
            file = _relative(definition.yaml_path)
            local[definition.name] = LocalRows(file=file, examples="examples" in given, changes=changes)
    return local


def _relative(path: Path) -> str:
    return path.relative_to(TASKS).as_posix()


def _positions(prepared: Iterable[Path]) -> dict[str, int]:
    """Return the window of each model that has a limit, in tokens."""
    facts = [read_json(path / "models.json") for path in prepared]
    return {
        model: fact["positions"] for models in facts for model, fact in models.items() if fact["positions"] is not None
    }
