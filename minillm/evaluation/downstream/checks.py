"""Checks of the harness's tasks for faults that would otherwise show only when a model answers."""

from collections.abc import Mapping
from typing import Any

from minillm.errors import StageError
from minillm.evaluation.downstream.harness import LocalRows, generated_tokens

FIELD = "evaluation.downstream"


def check(task: Any, local: LocalRows | None, positions: Mapping[str, int]) -> None:
    """Check one task and, if its rows are local, each of its questions (the harness vouches for the hub's).

    Args:
        task: Task as `harness.load` returns it.
        local: Definition of its local rows, or None if they come from the hub.
        positions: Window of each model that has a limit, in tokens.

    Raises:
        StageError: If the task runs code that the model writes, needs images or sound, lacks examples or generates
            more tokens than fit a model's window, or if a row gives no question with a right answer.
    """
    for flag, need in (("UNSAFE_CODE", "runs code that the model writes"), ("MULTIMODAL", "needs images or sound")):
        if getattr(task, flag, False):
            raise StageError(f"{FIELD}.tasks: {task.task_name} {need}, which is not supported; leave it out")
    _require_examples(task, local)
    if task.OUTPUT_TYPE == "generate_until":
        _require_room(task, positions)
    if local is not None:
        _require_questions(task)


def unfit(name: str, reason: str) -> StageError:
    """Return the error for local rows that do not fit a task."""
    return StageError(
        f"{FIELD}.local: the rows do not fit the task {name}: {reason}; they need the fields of its data set on the "
        "hub, or `changes` that make the task read others"
    )


def _require_examples(task: Any, local: LocalRows | None) -> None:
    shots = task.get_config("num_fewshot")
    if shots == 0:
        return
    fixed = task.config.fewshot_config.samples is not None
    apart = local is None or local.examples or fixed  # otherwise the questions themselves would be the examples
    available = len(task.sampler.df) if apart else 0
    if shots > available:
        raise StageError(
            f"{FIELD}: {task.task_name} is asked with {shots} examples, but there are {available} rows to take them "
            f"from; give more as `examples` in {FIELD}.local, or set {FIELD}.few_shot: 0"
        )


def _require_room(task: Any, positions: Mapping[str, int]) -> None:
    tokens = generated_tokens(task.config.generation_kwargs)
    for model, limit in positions.items():
        if tokens >= limit:
            raise StageError(
                f"{FIELD}.tasks: {task.task_name} generates up to {tokens} tokens, but {model} sees only {limit}; "
                "leave it out, or take a model with more positions"
            )


def _require_questions(task: Any) -> None:
    for number, row in enumerate(task.eval_docs, start=1):
        try:
            task.doc_to_text(row)
            answer = task.doc_to_target(row)
            choices = task.doc_to_choice(row) if task.config.doc_to_choice is not None else None
        except Exception as error:  # templates and functions of the task refuse rows in many ways
            raise unfit(task.task_name, f"row {number}: {error!r}") from error
        if task.OUTPUT_TYPE == "multiple_choice" and choices is not None and not task.multiple_input:
            right = answer if isinstance(answer, list) else [answer]
            if not all(0 <= one < len(choices) if isinstance(one, int) else one in choices for one in right):
                raise unfit(task.task_name, f"row {number}: the answer {answer!r} is not one of the choices {choices}")
