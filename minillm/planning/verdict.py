"""Verdict on a distillation before it runs, in three words with reasons and changes (docs/outlook.md)."""

from collections.abc import Mapping
from dataclasses import dataclass

from tabulate import tabulate

from minillm.evaluation.uncertainty import Estimate
from minillm.planning.outlook_figures import MODELS, TOP, Figures, OwnWays
from minillm.words import number, percent, with_interval

WORKS, DISAPPOINTS, NO_HELP, UNKNOWN = "it should work", "it may disappoint", "it cannot help", "cannot tell yet"
FAR_OFF = 2.0
"""Responses so many times as long as the references, or as short, are written in another manner."""
LITTLE_MASS = 0.5
"""A student that gives the teacher's top tokens less probability mostly writes what the teacher would not."""
MOSTLY = 0.5
"""Share of responses that do not end, from which on a model does not know how."""
TEMPLATES = {
    "different": "its own chat template writes prompts in another way than the rows are trained on",
    "absent": "it has no chat template of its own, and the rows are written in one",
    "unused": "it brings a chat template, and the rows are written in the text of data.template",
}


@dataclass(frozen=True)
class Subject:
    """One of the two models."""

    tuned: bool
    """True if it was fine-tuned in this store, false if it is as it comes."""
    final: bool
    """True if the distillation starts from exactly these weights, false if they are to be fine-tuned first."""
    ways: OwnWays | None
    """Template and end tokens that it brings itself; None if it brings no tokenizer."""


@dataclass(frozen=True)
class Finding:
    """One reason of the verdict against a distillation."""

    fatal: bool
    reason: str
    change: str


def verdict(figures: Figures, subjects: Mapping[str, Subject], metric: str) -> tuple[str, list[Finding]]:
    """Return the verdict and the reasons against.

    What only holds until a model is fine-tuned is no reason. If the teacher is as it will be, a student that is better
    already is one: fine-tuning will not make it worse.
    """
    found: list[Finding] = []
    if subjects["teacher"].final:
        found += _about_teacher(figures, subjects["teacher"], metric)
    if subjects["student"].final:
        found += _about_student(figures)
    for name, subject in subjects.items():
        if subject.final and subject.ways is not None:
            found += _about_ways(name, subject.ways)
    if any(finding.fatal for finding in found):
        return NO_HELP, found
    if found:
        return DISAPPOINTS, found
    return (WORKS if all(subject.final for subject in subjects.values()) else UNKNOWN), found


def _about_teacher(of: Figures, teacher: Subject, metric: str) -> list[Finding]:
    """Compare the teacher with the student and with the references."""
    better = "train it longer (teacher.training), or take a better teacher"
    change = better if teacher.tuned else "fine-tune it on the rows (teacher.training), or take a better teacher"
    found: list[Finding] = []
    far_off = of.length["teacher"] >= FAR_OFF or of.longest["teacher"] <= 1 / FAR_OFF
    scores = f"its {metric} is {number(of.score['teacher'])}, the student's {number(of.score['student'])}"
    if of.score_gain.value <= 0:
        fatal = _negative(of.score_gain) or far_off or of.loss_gain.value <= 0
        found.append(Finding(fatal, f"the teacher is not better than the student: {scores}", change))
    elif not (_positive(of.score_gain) or _positive(of.loss_gain)):
        found.append(Finding(False, f"the teacher is not clearly better than the student: {scores}", change))
    if _negative(of.loss_gain):
        losses = f"{number(of.loss['teacher'], 2)} nats a token against {number(of.loss['student'], 2)}"
        found.append(Finding(False, f"the teacher predicts the rows worse than the student, with {losses}", change))
    if far_off:
        times = _length(of, "teacher")
        reason = f"the teacher's responses are {times} times as long as the references, and the student learns that"
        found.append(Finding(False, reason, change))
    elif of.cut["teacher"] >= MOSTLY:
        reason = f"{percent(of.cut['teacher'])} of the teacher's responses do not end within data.max_tokens"
        found.append(Finding(False, reason, change))
    return found


def _about_student(of: Figures) -> list[Finding]:
    found, k = [], max(TOP)
    if of.mass["student"][k] < LITTLE_MASS:
        reason = f"the student gives the teacher's top {k} tokens only {percent(of.mass['student'][k])}"
        found.append(Finding(False, reason, "fine-tune the student first, or longer (student.initial)"))
    unfinished = {name: of.cut[name] + of.stopped[name] for name in MODELS}
    if unfinished["student"] >= MOSTLY > unfinished["teacher"]:
        reason = f"{percent(unfinished['student'])} of the student's responses do not end, as the teacher's do"
        found.append(Finding(False, reason, "fine-tune the student first, or longer (student.initial)"))
    return found


def _about_ways(name: str, ways: OwnWays) -> list[Finding]:
    change = "set data.template: chat" if ways.template == "unused" else f"fine-tune the {name} on the rows first"
    found = [Finding(False, f"the {name}: {TEMPLATES[ways.template]}", change)] if ways.template in TEMPLATES else []
    if ways.missing_ends:
        reason = f"rows end with {_tokens(ways)}, which the {name} does not name as an end"
        found.append(Finding(False, reason, f"fine-tune the {name} on the rows first, or see data.template"))
    return found


def _tokens(ways: OwnWays) -> str:
    return " and ".join(map(repr, ways.missing_ends))


def _positive(estimate: Estimate) -> bool:
    return estimate.low is not None and estimate.low > 0


def _negative(estimate: Estimate) -> bool:
    return estimate.high is not None and estimate.high < 0


def _length(of: Figures, name: str) -> str:
    """A length ratio, of which only a lower bound is known if responses were cut."""
    return f"{'at least ' if of.cut[name] or of.stopped[name] else ''}{number(of.length[name])}"


def figures_table(of: Figures, metric: str) -> str:
    """Write the figures as Markdown."""
    both = [
        ["loss, nats a token", *(number(of.loss[n], 2) for n in MODELS), _difference(of.loss_gain, 2)],
        [metric, *(number(of.score[n]) for n in MODELS), _difference(of.score_gain, 1)],
        ["tokens of responses by references", *(_length(of, n) for n in MODELS), ""],
        ["responses that do not end", *(percent(of.cut[n]) for n in MODELS), ""],
        ["responses stopped early", *(percent(of.stopped[n]) for n in MODELS), ""],
        ["probability of the references' end", *(percent(of.end[n]) for n in MODELS), ""],
        ["entropy, nats a token", *(number(of.entropy[n], 2) for n in MODELS), ""],
    ]
    for k in TOP:
        shared = f"{percent(of.shared[k])} shared"
        both.append([f"mass on the other's top {k}", *(percent(of.mass[n][k]) for n in MODELS), shared])
    headers = [f"on {of.rows} validation rows", *MODELS, "teacher better by, 95 %"]
    return tabulate(both, headers, "github", colalign=("left", "right", "right", "right"), disable_numparse=True)


def _difference(estimate: Estimate, digits: int) -> str:
    return with_interval(estimate.value, (estimate.low, estimate.high), digits, signed=True)


def ways_words(subjects: Mapping[str, Subject]) -> str:
    """Say which models were looked at, and whether their templates and end tokens agree with the rows."""
    words = []
    for name, subject in subjects.items():
        said = []
        if subject.ways is None:
            said.append("it brings no tokenizer")
        else:
            said += [TEMPLATES[subject.ways.template]] if subject.ways.template in TEMPLATES else []
            if subject.ways.missing_ends:
                said.append(f"rows end with {_tokens(subject.ways)}, which it does not name as an end")
        state = "as fine-tuned in the store" if subject.tuned else "as it comes"
        words.append(f"- the {name}, {state}: {'; '.join(said) or 'its template and end tokens are those of the rows'}")
    return "\n".join(["Models:", *words])


def verdict_words(figures: Figures, subjects: Mapping[str, Subject], metric: str) -> str:
    """Write the verdict with its reasons and what to change."""
    said, found = verdict(figures, subjects, metric)
    lines = [f"- {finding.reason}: {finding.change}" for finding in found]
    if not found:
        gains = f"{_difference(figures.loss_gain, 2)} nats a token and {_difference(figures.score_gain, 1)} {metric}"
        if said == WORKS:
            lines.append(f"- the teacher is better by {gains}, and nothing else speaks against it")
        else:
            lines.append(
                f"- so far the teacher is better by {gains}; fine-tuning changes this and the rest of the table"
            )
    if later := [name for name, subject in subjects.items() if not subject.final]:
        names = " and ".join(f"the {name}" for name in later)
        lines.append(f"- provisional: {names} will be fine-tuned first; run `minillm plan` again after that")
    return "\n".join([f"Will it work? **{said[0].upper()}{said[1:]}**", *lines])
