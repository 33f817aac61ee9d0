"""The list of the cases, and their run on one trainer."""

import functools
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.conformance import cases
from benchmarks.conformance.cases import TOLERANCE, NotApplicableError, Trainer
from benchmarks.protocol import serve

CASES: dict[str, tuple[str, Callable[[Trainer], float]]] = {
    "micro_batches": ("micro-batches: a batch at once, or row by row", cases.micro_batches),
    "padding_rotary": ("padding, rotary positions (Llama)", functools.partial(cases.padding, kind="llama")),
    "padding_absolute": ("padding, absolute positions (GPT-2)", functools.partial(cases.padding, kind="gpt2")),
    "order": ("order of the rows", cases.order),
    "end_is_learnt": ("the end token is learnt", cases.end_is_learnt),
    "padding_is_the_end": ("padding with the end token", cases.padding_is_the_end),
    "temperature": ("temperature of both models", cases.temperature),
    "padded_vocabulary": (
        "heads with rows that no token uses",
        functools.partial(cases.vocabulary, student_rows=16, teacher_rows=16),
    ),
    "two_vocabularies": (
        "heads of student and teacher padded differently",
        functools.partial(cases.vocabulary, student_rows=12, teacher_rows=16),
    ),
    "equal_models": ("a teacher that equals the student", cases.equal_models),
    "exact": ("exact gradient, by enumeration", cases.exact),
    "resume": ("the same weights after a resume", cases.resume),
}
"""Words and function of each case."""


class Contestant(NamedTuple):
    """A trainer under the cases."""

    title: str
    module: str
    """Its module in benchmarks/contenders."""
    environment: str | None = None
    """Folder below benchmarks/environments; None for our own."""


TRAINERS = {
    "ours_kd": Contestant("ours, KD", "conformance_ours"),
    "ours_minillm": Contestant("ours, MiniLLM", "conformance_ours"),
    "trl_gkd_text": Contestant("TRL GKD on given text (λ = 0)", "conformance_trl", "trl-1.16.0"),
    "trl_gkd_sampled": Contestant("TRL GKD on samples (λ = 1)", "conformance_trl", "trl-1.16.0"),
    "trl_distillation": Contestant("TRL Distillation", "conformance_trl", "trl-1.16.0"),
    "trl_minillm": Contestant("TRL MiniLLM", "conformance_trl", "trl-1.14.2"),
}
"""The trainers by the name that their contender knows them by."""


def examine(make: Callable[..., Trainer], mends: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Run every case on a trainer at its defaults; where one fails, try the options that may mend it.

    Args:
        make: Makes the trainer with some options.
        mends: Options to try, by case.

    Returns:
        For each case its verdict (pass, fail, refused or not applicable), relative error, words and mending options.
    """
    trainer = make()
    return {name: _examine(case, trainer, make, mends.get(name, ())) for name, (_, case) in CASES.items()}


def _examine(
    case: Callable[[Trainer], float],
    trainer: Trainer,
    make: Callable[..., Trainer],
    mends: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    try:
        error = case(trainer)
    except NotApplicableError as why:
        return {"verdict": "not applicable", "words": str(why)}
    except (ValueError, RuntimeError) as why:
        return {"verdict": "refused", "words": str(why)}
    if error < TOLERANCE:
        return {"verdict": "pass", "error": error}
    mended = next((options for options in mends if case(make(**options)) < TOLERANCE), None)
    return {"verdict": "fail", "error": error, "passes_with": mended}


def serve_cases(
    make: Callable[..., Trainer], mends: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]], library: str
) -> None:
    """Run a contender whose one step examines the trainer that the settings name.

    Args:
        make: Makes a trainer, given its name and options.
        mends: For each trainer, the options to try by case.
        library: Package that the trainer is of or stands on, whose version is reported.
    """

    def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        trainer = settings["trainer"]
        versions = {name: importlib.metadata.version(name) for name in (library, "transformers", "torch")}
        made = functools.partial(make, trainer)
        return lambda: {"versions": versions, "cases": examine(made, mends.get(trainer, {}))}

    serve(make_step)
