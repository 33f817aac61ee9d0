"""Stage `consistent`: keeps the answers of System 2 that agree with themselves, as rows to train System 1 on."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.data.benchmarks import load_benchmarks
from minillm.data.candidates import Candidate, drop_long, kept, split_at_random
from minillm.data.examples import tokenise, write_parts
from minillm.data.filter_report import dropped_table
from minillm.data.filtering import OUTPUT_PARTS
from minillm.data.prompts import template_of
from minillm.data.rows import Row
from minillm.errors import StageError
from minillm.files import write_json
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.placeholders import fill
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import KeepConsistent
from minillm.system2.asking import read_answers
from minillm.system2.canonical import canonical
from minillm.system2.questions import shown

NONE, TIE, FEW, ORDER, REFUSED = (
    "no final answer in any sample",
    "two answers as common",
    "too few samples agree",
    "another answer in another order of choices",
    "refused by the chat template",
)
"""Reasons why the answers to a question are dropped."""


def run(job: Job[KeepConsistent]) -> Summary:
    """Write train, validation and test .parquet as the filter of a distillation does, dropped.csv and right.json.

    Raises:
        StageError: Too few answers are kept to train and validate on.
    """
    settings = job.settings
    questions = load_benchmarks(job.inputs["questions"])
    votes: dict[tuple[str, int], dict[int, list[str | None]]] = defaultdict(lambda: defaultdict(list))
    for answer in read_answers(job.inputs["answers"]):
        votes[answer.set, answer.index][answer.order].append(answer.answer)
    decided = {place: decide(list(of.values()), settings.majority) for place, of in votes.items()}
    rows: list[Row] = []
    gone: list[Candidate] = []
    for number, ((name, index), (answer, reason)) in enumerate(decided.items()):
        prompt = fill(settings.prompt, {"question": shown(questions[name][index], 0)})
        if answer is None:
            gone.append(_dropped(number, name, reason))
        else:
            rows.append(Row(number, prompt, "", answer, name))
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    template = template_of(shared.tokenizer, settings.template, shared.ends)
    waiting = job.work / "rows.arrow"
    candidates, refused, _ = tokenise(rows, template, "last", settings.max_tokens, waiting)
    names = {row.row: row.category for row in rows}
    gone += [_dropped(row.row, names[row.row], REFUSED) for row in refused]
    drop_long(candidates, settings.max_prompt_tokens, settings.max_tokens)
    split_at_random(candidates, settings.validation_size, 0, settings.seed)
    dropped = dropped_table([*candidates, *gone], 0)
    reasons = [candidate.reason for candidate in [*candidates, *gone] if candidate.reason]
    if not kept(candidates, "train"):
        raise StageError(
            f"{len(kept(candidates))} answers are kept of {len(decided)}, and data.validation_size takes "
            f"{settings.validation_size}: none is left to train on. What was dropped:\n\n{dropped.to_markdown()}\n\n"
            "Give more questions, lower self_consistency.majority or data.validation_size, or ask by another system2"
        )
    write_parts(waiting, candidates, {part: job.output / f"{part}.parquet" for part in OUTPUT_PARTS})
    waiting.unlink()
    dropped.to_csv(job.output / "dropped.csv", encoding="utf-8")
    learnt = {candidate.row for candidate in kept(candidates)}
    write_json(job.output / "right.json", rightness(questions, decided, learnt))
    return {
        "questions": float(len(decided)),
        "kept": float(len(learnt)),
        **{f"dropped/{reason}": float(count) for reason, count in Counter(reasons).items()},
    }


def _dropped(number: int, name: str, reason: str) -> Candidate:
    """Return a question whose answer is dropped before it is tokenised."""
    return Candidate(number, name, b"", (), 0, 0, 0, reason=reason)


def decide(answers: Sequence[Sequence[str | None]], majority: float) -> tuple[str | None, str]:
    """Return the answer to keep and an empty reason, or None and the reason.

    Args:
        answers: N answers for each order of the choices, None where none was found.
        majority: Least share of the N that must be the most common answer.
    """
    chosen: list[str] = []
    for of_order in answers:
        votes = Counter(canonical(answer) for answer in of_order if answer is not None)
        if not votes:
            return None, NONE
        (best, count), *others = votes.most_common(2)
        if others and others[0][1] == count:
            return None, TIE
        if count / len(of_order) < majority:
            return None, FEW
        chosen.append(best)
    if len(set(chosen)) > 1:
        return None, ORDER
    written = Counter(answer for answer in answers[0] if answer is not None and canonical(answer) == chosen[0])
    return written.most_common(1)[0][0], ""


def is_right(answer: str | None, references: Sequence[str]) -> bool:
    """Return whether an answer equals a reference."""
    return answer is not None and canonical(answer) in map(canonical, references)


def rightness(
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    decided: Mapping[tuple[str, int], tuple[str | None, str]],
    learnt: set[int],
) -> dict[str, int]:
    """Count the kept answers whose rows have an answer too, and those that are right; nothing is chosen by it."""
    known = [
        is_right(answer, references)
        for number, ((name, index), (answer, _)) in enumerate(decided.items())
        if number in learnt and (references := questions[name][index]["references"])
    ]
    return {"known": len(known), "right": sum(known)}
