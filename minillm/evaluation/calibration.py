"""Stage `calibration`: accuracy and calibration of a model on zero-shot multiple choice (method.md §7).

A choice is scored by the log-probability of its tokens as the response to the prompt, Σ_t log q(y_t|y_<t, x), without
EOS. The model's probability of the choice is the softmax of these sums over all choices. The sums are not divided by
length: a mean per token would not be a log-probability. Confidence is the largest of the probabilities.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from minillm.evaluation.likelihood import likelihoods
from minillm.evaluation.reliability import binned, reliability
from minillm.evaluation.responses import read_rows
from minillm.evaluation.uncertainty import estimate
from minillm.files import write_json, write_json_lines
from minillm.models.batches import Limit
from minillm.models.causal_lm import dtype_of, load_frozen
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.measuring import Calibration
from minillm.worker.processes import process_group, rank
from minillm.worker.progress import Progress


@process_group()
def run(job: Job[Calibration]) -> Summary:
    """Write NAME.jsonl (the probabilities of each row's choices) and calibration.json (accuracy and calibration).

    Sets finished before a failure are not asked again.
    """
    _ask(job, job.settings)
    return _measure(job, job.settings) if rank() == 0 else {}


def _ask(job: Job[Calibration], settings: Calibration) -> None:
    questions = {name: read_rows(job.inputs["questions"], name) for name in settings.sets}
    vocabulary = load_shared_tokenizer(job.inputs["tokenizer"]).entries
    model = load_frozen(job.inputs["model"], dtype_of(settings.precision), job.runtime)
    total = sum(len(row["choices"]) for rows in questions.values() for row in rows)
    progress, done = Progress(job.output, total, "choices"), 0
    for name, rows in questions.items():
        pairs = [(row["prompt_ids"], choice) for row in rows for choice in row["choice_ids"]]
        target = job.output / f"{name}.jsonl"
        if not target.exists():
            found = likelihoods(
                model, vocabulary, pairs, Limit.of(job.runtime), lambda n, before=done: progress.log(before + n)
            )
            if rank() == 0:
                lines = judge(rows, [float(likelihood.log_prob.sum()) for likelihood in found])
                write_json_lines(target, lines)
        done += len(pairs)


def judge(rows: Sequence[Mapping[str, Any]], log_probs: Sequence[float]) -> list[dict[str, Any]]:
    """Return the model's verdict on each row: {"index", "answer", "predicted", "probabilities"}.

    Args:
        rows: Rows of one set, as `minillm.data.questions` writes them.
        log_probs: Log-probabilities of all choices, row after row.
    """
    ends = np.cumsum([len(row["choices"]) for row in rows])[:-1]
    lines = []
    for row, row_log_probs in zip(rows, np.split(np.asarray(log_probs), ends), strict=True):
        probabilities = softmax(row_log_probs)
        facts = {"index": row["index"], "answer": row["answer"], "predicted": int(probabilities.argmax())}
        lines.append({**facts, "probabilities": probabilities.tolist()})
    return lines


def measure(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return accuracy (0–100) and expected calibration error (0–1) with 95 % intervals, and the sums by confidence."""
    correct = np.array([line["predicted"] == line["answer"] for line in lines], float)
    parts = np.stack(
        [binned([max(line["probabilities"])], [right]) for line, right in zip(lines, correct, strict=True)]
    )
    accuracy = estimate([100 * correct])
    return {
        "prompts": len(lines),
        "accuracy": {"value": accuracy.value, "interval": [accuracy.low, accuracy.high]},
        **reliability(parts),
    }


def _measure(job: Job[Calibration], settings: Calibration) -> Summary:
    measured = {name: measure(read_rows(job.output, name)) for name in settings.sets}
    write_json(job.output / "calibration.json", measured)
    for name, found in measured.items():
        accuracy, error = found["accuracy"]["value"], found["ece"]["value"]
        print(f"{settings.role} {name}: accuracy {accuracy:.1f} %, ECE {error:.3f}", flush=True)
    return {
        f"{metric}/{name}": found[metric]["value"] for metric in ("accuracy", "ece") for name, found in measured.items()
    }
