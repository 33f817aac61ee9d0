"""Seconds of each stage, from what it has to do and how fast that goes here."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.planning.work import Work, same_speed
from minillm.stages import Score, Stage, Train


def stage_seconds(stage: Stage, work: Work, speed: Mapping[str, Any], processes: int, responses: int) -> float:
    """From the start of its worker to its end.

    Args:
        stage: Its settings.
        work: What it has to do.
        speed: speed.json, or the mean of several.
        processes: That share it; generation and scoring were timed in one, training in all.
        responses: Of one model to all benchmarks with all seeds.
    """
    seconds = speed["training_start_seconds" if isinstance(stage, Train) else "start_seconds"]
    if isinstance(stage, Train):
        measured = speed["trainings"][same_speed(stage)]
        seconds += work.steps * measured["step_seconds"] + work.validations * measured["validation_seconds"]
        seconds += work.rounds * measured.get("round_seconds", 0.0) + measured["checkpoint_seconds"]
    for name, tokens in work.generated.items():
        seconds += tokens / speed["models"][name]["generated_per_second"] / processes
    for name, tokens in work.scored.items():
        seconds += tokens / speed["models"][name]["scored_per_second"] / processes
    if isinstance(stage, Score):
        seconds += responses * speed["rouge_seconds"]
    return seconds


def mean_speed(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number of several speed.json, from copies that ran at once as stages will."""
    first = measured[0]
    return {
        name: mean_speed([of[name] for of in measured])
        if isinstance(value, Mapping)
        else statistics.fmean(of[name] for of in measured)
        for name, value in first.items()
    }
