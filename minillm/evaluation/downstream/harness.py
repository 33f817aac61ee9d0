"""The tasks of lm-evaluation-harness that a run asks for, with local rows in place of the hub's."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from minillm.config import Strict
from minillm.reachable import reachable

TASKS = Path(lm_eval.tasks.__file__).parent
"""Folder in which the harness defines its tasks, one YAML file each."""
PLAN = "plan.json"
SEED = 1234
"""Seed of few-shot examples and of everything else that is drawn; the harness's default."""

Definition = Any
"""A task, group or tag in the harness's index: name, kind, cfg, yaml_path, tags."""

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every prompt that it cuts; here they are counted


class LocalRows(Strict):
    """Redefinition of a task on local rows."""

    file: str
    """The task's own definition, as a path below TASKS."""
    examples: bool
    """True if there are local rows to take few-shot examples from."""
    changes: dict[str, Any]


class Plan(Strict):
    """The tasks that the harness is asked for, checked once for all models."""

    harness: str
    """Version of the harness."""
    tasks: tuple[str, ...]
    few_shot: int | None
    folders: tuple[str, ...]
    """Folders of the definitions in use, below TASKS; reading all 14,000 takes seconds for each model."""
    local: dict[str, LocalRows]
    """Local rows by name of the task; the rows of a group are listed under each of its tasks."""


def beneath(index: Mapping[str, Definition], name: str) -> list[Definition]:
    """Return the definition of a task, or of a group or tag with all its members.

    Args:
        index: Index of a TaskManager.
        name: Name in the index.
    """
    names = reachable([name], lambda name: [member for member in _members(index[name]) if member in index])
    return [index[name] for name in names]


def task_manager(plan: Plan, rows: Path, work: Path) -> TaskManager:
    """Return a TaskManager of the tasks in use; a task with local rows includes its own definition and changes it.

    Args:
        plan: The tasks in use; its `local` ones are written as YAML files.
        rows: Folder of the files that `rows_file` names.
        work: Folder for the YAML files and for the harness's copy of the rows.
    """
    folder = work / "definitions"
    folder.mkdir(exist_ok=True)
    for name, local in plan.local.items():
        splits = ["test", "examples"] if local.examples else ["test"]
        definition = {
            "include": str(TASKS / local.file),
            "task": name,
            "tag": None,  # the tag keeps the members it has in the harness
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(rows_file(rows, name, split)) for split in splits},
                "cache_dir": str(work / "cache"),
            },
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "fewshot_split": "examples" if local.examples else None,
            **local.changes,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
    return TaskManager(include_path=[*(TASKS / name for name in plan.folders), folder], include_defaults=False)


def rows_file(folder: Path, task: str, split: str) -> Path:
    """Return the path of a task's local rows; the splits are test and examples."""
    return folder / split / f"{task}.jsonl"


def load(manager: TaskManager, name: str, few_shot: int | None) -> TaskDict:
    """Load a task, or the tasks of a group or tag, with their data, and set their number of few-shot examples.

    Args:
        manager: Result of `task_manager`.
        name: Name of a task, group or tag.
        few_shot: Number of examples for tasks that do not insist on none; None keeps each task's own number.
    """
    loaded = manager.load([name])
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        task.set_config("num_fewshot", (own or 0) if few_shot is None or own == 0 else few_shot)
        task.set_fewshot_seed(SEED)
    return loaded


def generated_tokens(options: dict[str, Any]) -> int:
    """Return the most tokens that a task generates per question by its settings; 256 if they do not say."""
    settings: Any = normalize_gen_kwargs(options)
    return settings["max_gen_toks"]


def _members(definition: Definition) -> list[str]:
    if definition.kind.name == "TAG":
        return sorted(definition.tags)
    return list(_names(definition.cfg.get("task"))) if definition.kind.name == "GROUP" else []


def _names(members: Any) -> Iterator[str]:
    """Yield the names in a group's list of tasks, which may be nested and may carry settings."""
    if isinstance(members, str):
        yield members
    elif isinstance(members, dict):
        yield from _names([members.get("group"), members.get("task")])
    elif isinstance(members, list):
        for member in members:
            yield from _names(member)
