"""Stage `downstream`: one model answers the harness's tasks, with its prompts, metrics and standard errors."""

import json
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.manager import TaskDict
from transformers import set_seed

from minillm.config import Template
from minillm.durable import write_atomically
from minillm.errors import StageError
from minillm.evaluation.downstream.harness import PLAN, SEED, Plan, generated_tokens, load, task_manager
from minillm.files import read_json, write_json
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.facts import UNKNOWN_POSITIONS
from minillm.models.output_head import output_head
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import DownstreamScore
from minillm.worker.progress import Progress

KEPT = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
"""Parts kept of the harness's result. Its task definitions are dropped: they hold paths of this machine."""

Facts = dict[str, Any]
LanguageModel = Any
"""The harness's HFLM, which its registry hides from type checkers."""


def run(job: Job[DownstreamScore]) -> Summary:
    """Write results.json (as the harness returns it), table.json (a row per task) and samples/TASK.jsonl (all answers).

    Tasks finished before a failure are not answered again.
    """
    settings = job.settings
    plan = Plan.model_validate_json((job.inputs["tasks"] / PLAN).read_text(encoding="utf-8"))
    manager = task_manager(plan, job.inputs["tasks"], job.work)
    lm = language_model(job, settings)
    progress = Progress(job.output, len(plan.tasks), "tasks")
    parts: list[Facts] = []
    for number, name in enumerate(plan.tasks, start=1):
        finished = job.work / f"{name}.json"
        if not finished.exists():
            loaded = load(manager, name, plan.few_shot)
            part = answer(lm, loaded, settings.limit, settings.template, job.output / "samples")
            write_atomically(finished, json.dumps(part, default=float))
        parts.append(read_json(finished))
        for task, row in table(name, parts[-1]).items():
            print(f"{settings.role} {task}: {row['metric']} {row['value']:.4f}", flush=True)
        progress.log(number)
    rows = _merged(table(name, part) for name, part in zip(plan.tasks, parts, strict=True))
    results = {key: _merged(part[key] for part in parts) for key in KEPT}
    write_json(job.output / "results.json", {"harness": plan.harness, **results})
    write_json(job.output / "table.json", {"harness": plan.harness, "tasks": rows})
    return _flat(rows)


def language_model(job: Job[DownstreamScore], settings: DownstreamScore) -> LanguageModel:
    """Wrap the model for the harness: log-probabilities in float32, over the tokenizer's entries.

    Padding rows of the embedding are cut off, as in training. A generated answer ends at the tokens that end a
    response; the checkpoint's other generation settings are ignored.
    """
    make: Any = HFLM
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    model = load_frozen(job.inputs["model"], dtype_of(settings.precision), job.runtime)
    if len(output_head(model, shared.entries).weight) > shared.entries:
        model.resize_token_embeddings(shared.entries)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", UNKNOWN_POSITIONS)
    model.generation_config = shared.generation_config(do_sample=False)
    return make(
        pretrained=model,
        tokenizer=shared.tokenizer,
        backend="causal",
        batch_size=job.runtime.rows_at_once(positions),
        softmax_dtype="float32",
        chat_template_args=dict(settings.template.variables) if settings.template is not None else None,
    )


def answer(lm: LanguageModel, loaded: TaskDict, limit: int | None, template: Template | None, samples: Path) -> Facts:
    """Run the harness and return its results, with the number of questions cut in each task.

    This calls the harness's `evaluate`: its `simple_evaluate` would add facts about the machine.

    Args:
        lm: The model.
        loaded: One task, or the tasks of a group or tag.
        limit: Number of questions of each task; None for all.
        template: Chat template of the questions; None for plain text.
        samples: Folder for TASK.jsonl.

    Raises:
        StageError: If the harness cannot put a question to the model, for example because an answer is longer than
            the model's window.
    """
    set_seed(SEED)
    try:
        returned: Any = evaluate(lm, loaded, limit=limit, **_as_chat(template))
    except AssertionError as error:
        broken = traceback.extract_tb(error.__traceback__)[-1].line
        raise StageError(
            f"{', '.join(loaded['tasks'])}: a question cannot be put to this model, which sees {lm.max_length} tokens "
            f"(`{broken}`); leave the task out of evaluation.downstream.tasks, or take a model with more positions"
        ) from error
    cut = {}
    for task, answered in returned["samples"].items():
        cut[task] = len({sample["doc_id"] for sample in answered if any(_is_cut(lm, a) for a in sample["arguments"])})
        lines = [json.dumps(_compact(sample), default=str) + "\n" for sample in answered]
        samples.mkdir(exist_ok=True)
        write_atomically(samples / f"{task}.jsonl", "".join(lines))
    return {key: returned.get(key, {}) for key in KEPT} | {"cut": cut}


def _as_chat(template: Template | None) -> Facts:
    """Return the harness's arguments for questions as messages, with examples as turns before them."""
    if template is None:
        return {}
    return {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": template.system}


def table(name: str, part: Facts) -> dict[str, Facts]:
    """Return one row for a task or group; for a tag, or a group without a score of its own, one for each task.

    A row's `metric` is the first that the task lists; `scores` has all of them, each with its standard error or None.
    `shots` is None if the tasks of a group differ; `cut` counts questions whose beginning the model did not see.
    """
    tasks = list(part["n-samples"])
    shown = [name] if scores(part["results"].get(name, {})) else tasks
    return {one: _row(one, [one] if one in tasks else tasks, part) for one in shown}


def _row(name: str, tasks: Sequence[str], part: Facts) -> Facts:
    found = scores(part["results"][name])
    metric, (value, error) = next(iter(found.items()))
    shots = {part["n-shot"][task] for task in tasks}
    return {
        "metric": metric,
        "value": value,
        "stderr": error,
        "higher_is_better": part["higher_is_better"][tasks[0]].get(metric.partition(",")[0]),
        "scores": found,
        "version": str(part["versions"].get(name)),
        "shots": shots.pop() if len(shots) == 1 else None,
        "questions": sum(part["n-samples"][task]["effective"] for task in tasks),
        "cut": sum(part["cut"][task] for task in tasks),
    }


def scores(result: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Return each metric's value and standard error (None if the harness has none), in the task's order.

    Args:
        result: The harness's result, {"acc,none": …, "acc_stderr,none": …}. A filter other than none stays in the
            metric's name.
    """
    found = {}
    for key, value in result.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = result.get(f"{metric}_stderr,{chosen}")
            label = metric if chosen == "none" else f"{metric},{chosen}"
            found[label] = (value, error if isinstance(error, int | float) else None)
    return found


def _is_cut(lm: LanguageModel, arguments: Sequence[Any]) -> bool:
    """Return whether the harness cuts the beginning of a request; plain texts are scored window by window, uncut."""
    match list(arguments):
        case [str(context), str(continuation)]:
            return len(lm.tok_encode(context + continuation)) > lm.max_length + 1
        case [str(context), dict(options)]:
            return len(lm.tok_encode(context)) > lm.max_length - generated_tokens(options)
    return False


def _compact(sample: Mapping[str, Any]) -> Facts:
    names = ("doc_id", "target", "filter", "filtered_resps", *sample["metrics"])
    return {name: sample[name] for name in names}


def _merged(parts: Iterable[Mapping[str, Any]]) -> Facts:
    return {name: value for part in parts for name, value in part.items()}


def _flat(rows: Mapping[str, Facts]) -> Summary:
    """Return the rows' numbers under names that MLflow allows; `downstream/TASK` is the row's own metric."""
    summary: Summary = {}
    for task, row in rows.items():
        summary[f"downstream/{task}"] = row["value"]
        if row["stderr"] is not None:
            summary[f"downstream/{task}_stderr"] = row["stderr"]
        summary |= {f"{metric}/{task}": value for metric, (value, _) in row["scores"].items()}
        summary |= {f"questions/{task}": row["questions"], f"cut/{task}": row["cut"]}
    return {re.sub(r"[^\w.\- :/]", "_", name): value for name, value in summary.items()}
