"""Stage `downstream_tasks`: the harness's tasks, found and checked with their data before anything is trained."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from minillm.artifacts import write_atomically
from minillm.errors import StageError
from minillm.evaluation.harness import PLAN, TASKS, LocalRows, Plan, generated_tokens, load, rows_file, task_manager
from minillm.evaluation.local_rows import Row, deal, read_rows
from minillm.nearest import suggestion
from minillm.stages import DownstreamTasks, Job

FIELD = "evaluation.downstream"
Definition = Any
"""Of a task, group or tag in the harness's index: name, kind, cfg, yaml_path, tags."""


def run(job: Job) -> dict[str, float | str]:
    """Write plan.json and the local rows by task; the summary has the number of questions of each task asked for.

    Raises:
        StageError: If a task is unknown, cannot be had, is not for a language model alone, or its rows do not fit it.
    """
    settings = job.settings
    assert isinstance(settings, DownstreamTasks)
    index = TaskManager().task_index
    made_of = {name: beneath(index, name) for name in settings.tasks}
    definitions = {d.name: d for found in made_of.values() for d in found}
    local: dict[str, LocalRows] = {}
    for name in settings.changes:
        for task, rows in _write_rows(job, settings, name, made_of[name]).items():
            if task in local:
                raise StageError(
                    f"{FIELD}.local.{name}: another entry of `local` has rows for {task} already; drop one"
                )
            local[task] = rows
    plan = Plan(
        harness=settings.harness,
        tasks=settings.tasks,
        few_shot=settings.few_shot,
        folders=tuple(sorted({_relative(d.yaml_path.parent) for d in definitions.values() if d.yaml_path})),
        local=local,
    )
    manager = task_manager(plan, job.output, job.work)
    positions = _positions(job.inputs["prepared"])
    summary: dict[str, float | str] = {"harness": settings.harness}
    for name in settings.tasks:
        loaded = _load(manager, name, settings)
        for task in loaded["tasks"].values():
            check(task, plan.local.get(task.task_name), positions)
        summary[f"questions/{name}"] = sum(len(task.eval_docs) for task in loaded["tasks"].values())
    write_atomically(job.output / PLAN, plan.model_dump_json(indent=2))
    return summary


def beneath(index: Mapping[str, Definition], name: str) -> list[Definition]:
    """The definitions of a task, or of a group or tag and all that it is made of.

    Raises:
        StageError: If the harness has no such task.
    """
    if name not in index:
        raise StageError(f"{FIELD}.tasks: lm-evaluation-harness has no task {name!r}; {suggestion(name, index)}")
    found: dict[str, Definition] = {}
    waiting = [name]
    while waiting:
        name = waiting.pop()
        if name in index and name not in found:
            found[name] = index[name]
            waiting += _members(index[name])
    return list(found.values())


def check(task: Any, local: LocalRows | None, positions: Mapping[str, int]) -> None:
    """Check what would fail only when a model answers.

    Args:
        task: As loaded; its questions are built where its rows are local (the hub's are the harness's to vouch for).
        local: Where its rows come from, if not from the hub.
        positions: Most tokens that each model sees, where there is a limit.

    Raises:
        StageError: If it runs code that the model writes, needs images or sound, lacks examples, generates more
            tokens than a model sees, or a row makes no question with a right answer.
    """
    for flag, need in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "needs images or sound")):
        if getattr(task, flag, False):
            raise StageError(f"{FIELD}.tasks: {task.task_name} {need}, which is not supported; leave it out")
    _require_examples(task, local)
    if task.OUTPUT_TYPE == "generate_until":
        _require_room(task, positions)
    if local is not None:
        _require_questions(task)


def _require_examples(task: Any, local: LocalRows | None) -> None:
    shots = task.get_config("num_fewshot")
    if shots == 0:
        return
    fixed = task.config.fewshot_config.samples is not None
    apart = local is None or local.examples or fixed  # else they would be the questions themselves
    available = len(task.sampler.df) if apart else 0
    if shots > available:
        raise StageError(
            f"{FIELD}: {task.task_name} is asked with {shots} examples, but there are {available} rows to take them "
            f"from; give more as `examples` in {FIELD}.local, or set {FIELD}.few_shot: 0"
        )


def _require_room(task: Any, positions: Mapping[str, int]) -> None:
    tokens = generated_tokens(task.config.generation_kwargs)
    for role, limit in positions.items():
        if tokens >= limit:
            raise StageError(
                f"{FIELD}.tasks: {task.task_name} generates up to {tokens} tokens, but {role}.model sees only {limit}; "
                "leave it out, or take a model with more positions"
            )


def _require_questions(task: Any) -> None:
    for number, row in enumerate(task.eval_docs, start=1):
        try:
            task.doc_to_text(row)
            answer = task.doc_to_target(row)
            choices = task.doc_to_choice(row) if task.config.doc_to_choice is not None else None
        except Exception as error:  # templates and functions of the task refuse rows in many ways
            raise StageError(_unfit(task.task_name, f"row {number}: {error!r}")) from error
        if task.OUTPUT_TYPE == "multiple_choice" and choices is not None and not task.multiple_input:
            right = answer if isinstance(answer, list) else [answer]
            if not all(0 <= one < len(choices) if isinstance(one, int) else one in choices for one in right):
                raise StageError(_unfit(task.task_name, f"row {number}: {answer!r} is none of the choices {choices}"))


def _write_rows(job: Job, settings: DownstreamTasks, name: str, made_of: Sequence[Definition]) -> dict[str, LocalRows]:
    """Write the local rows of a task, or of every task of a group."""
    tasks = [definition for definition in made_of if definition.kind.name == "TASK"]
    if not tasks or any(definition.kind.name == "PY_TASK" for definition in made_of):
        raise StageError(f"{FIELD}.local.{name}: the harness makes its data by code; local rows cannot stand for it")
    data_sets = {definition.name: definition.cfg.get("dataset_name") for definition in tasks}
    splits = {"test": ("rows", "source"), "examples": ("examples", "examples")}
    given = {split: which for split, which in splits.items() if f"{which[0]}/{name}" in job.inputs}
    for split, (kind, key) in given.items():
        field = f"{FIELD}.local.{name}.{key}"
        dealt = deal(field, read_rows(field, job.inputs[f"{kind}/{name}"]), settings.parts.get(name), data_sets)
        for task, rows in dealt.items():
            _write(rows_file(job.output, task, split), rows)
    return {
        definition.name: LocalRows(
            file=_relative(definition.yaml_path), examples="examples" in given, changes=settings.changes[name]
        )
        for definition in tasks
    }


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _load(manager: TaskManager, name: str, settings: DownstreamTasks) -> TaskDict:
    try:
        return load(manager, name, settings.few_shot)
    except Exception as error:  # the harness and the code of its tasks fail in many ways
        reason = f"{error!r}".splitlines()[0]
        if name in settings.changes:
            raise StageError(_unfit(name, reason)) from error
        raise StageError(
            f"{FIELD}.tasks: {name} cannot be had ({reason}); its data set comes from the hub: connect, set "
            "HF_ENDPOINT to a mirror, copy the cache of a connected machine, or give its rows as "
            f"{FIELD}.local.{name}.source"
        ) from error


def _unfit(name: str, reason: str) -> str:
    return (
        f"{FIELD}.local: the rows do not fit the task {name}: {reason}; they need the fields of its data set on the "
        "hub, or `changes` that make the task read others"
    )


def _members(definition: Definition) -> list[str]:
    if definition.kind.name == "TAG":
        return sorted(definition.tags)
    return list(_names(definition.cfg.get("task"))) if definition.kind.name == "GROUP" else []


def _names(members: Any) -> Iterator[str]:
    """Names in a group's list of tasks, which may be nested and may carry settings."""
    if isinstance(members, str):
        yield members
    elif isinstance(members, dict):
        yield from _names([members.get("group"), members.get("task")])
    elif isinstance(members, list):
        for member in members:
            yield from _names(member)


def _relative(path: Path) -> str:
    return path.relative_to(TASKS).as_posix()


def _positions(prepared: Path) -> dict[str, int]:
    facts = json.loads((prepared / "models.json").read_text())
    return {role: fact["positions"] for role, fact in facts.items() if fact["positions"] is not None}
