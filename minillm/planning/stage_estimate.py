"""Plan of a run: every stage that has to be computed, with its work, memory, disk and time, and whether it fits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from humanize import intword, metric, naturalsize
from tabulate import tabulate

from minillm.config import Runtime
from minillm.config.hosts import read_hosts
from minillm.data.learnt_turns import prompts_of
from minillm.errors import StageError
from minillm.files import read_json
from minillm.models.facts import ModelFacts
from minillm.planning.demand import Demand
from minillm.planning.extrapolation import Seconds
from minillm.planning.work import Amounts
from minillm.stages.base import Stage
from minillm.stages.training import Train
from minillm.words import span


@dataclass(frozen=True)
class StageEstimate:
    """Needs of one stage that has to be computed."""

    label: str
    stage: Stage
    model: str
    """`teacher` or `student`, whichever the stage trains or measures."""
    after: frozenset[str]
    """Labels of stages to be computed before."""
    demand: Demand
    continues_at: int = 0
    """Optimizer step of the checkpoint that it continues from."""


def read_amounts(filtered: Path) -> Amounts:
    """Count the rows that the filter kept."""
    train, validation = (pd.read_parquet(filtered / f"{part}.parquet") for part in ("train", "validation"))
    examples = prompts_of(train)
    return Amounts(
        rows=len(train),
        row_tokens=_mean_length(train["prompt_ids"]) + _mean_length(train["response_ids"]),
        examples=len(examples),
        validation=len(prompts_of(validation)),
        prompt=_mean_length(examples["prompt_ids"]),
        response=_mean_length(examples["response_ids"]),
        benchmark_prompts={},
        seeds=0,
    )


def _mean_length(column: Any) -> float:
    return float(column.map(len).mean())


def require_fit(estimates: Sequence[StageEstimate], runtime: Runtime, stages_at_once: int, store: Path) -> str:
    """Compare memory and disk with this machine's.

    Returns:
        Both in words.

    Raises:
        StageError: If a stage, or several at once, cannot fit; the message names what to change.
    """
    # Hosts of a hostfile are taken to be like this one.
    room, words = _room(max(read_hosts(runtime).values()) if runtime.hostfile else runtime.processes)
    by_memory = sorted(
        ((e.demand.memory, e.label) for e in estimates if e.demand.memory), key=lambda pair: pair[0].total, reverse=True
    )
    at_once = by_memory[:stages_at_once]
    for memory, label in at_once[:1]:
        if memory.total > room:
            parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.parts.items() if size)
            raise StageError(
                f"{label} needs {_size(memory.total)} in each process ({parts}), but {words}: {memory.knob}"
            )
    if (together := sum(memory.total for memory, _ in at_once)) > room:
        names = " and ".join(label for _, label in at_once)
        raise StageError(
            f"{names} at once need {_size(together)} for each process, but {words}: "
            f"set runtime.parallel_stages: {stages_at_once - 1}"
        )
    needed = sum(e.demand.disk for e in estimates)
    free = psutil.disk_usage(str(store)).free
    if needed > free:
        raise StageError(
            f"checkpoints, models and the teacher's knowledge need {_size(needed)}, but {store} has {_size(free)} "
            "left: set runtime.store to a folder on a larger disk, or make room (`minillm store gc`)"
        )
    return f"{words}; disk: {_size(needed)} needed at most, {_size(free)} free"


def _room(processes: int) -> tuple[int, str]:
    """Return the memory for each process, and where it is in words."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        if processes > count:
            raise StageError(
                f"runtime.processes is {processes}, but this machine has {count} GPUs: lower it to {count}"
            )
        room = min(torch.cuda.get_device_properties(number).total_memory for number in range(count))
        return room, f"each GPU has {_size(room)}"
    available = psutil.virtual_memory().available
    shared = f", {_size(available / processes)} for each of {processes} processes" if processes > 1 else ""
    return available // processes, f"{_size(available)} of memory are free{shared}"


def stage_table(estimates: Sequence[StageEstimate], seconds: Mapping[str, Seconds]) -> str:
    """Stages with tokens, operations, memory and time, as Markdown."""
    rows = []
    for e in estimates:
        start = f" from step {e.continues_at}" if e.continues_at else ""
        work, memory, taken = e.demand.work, e.demand.memory, seconds[e.label]
        rows.append(
            [
                e.label + start,
                intword(round(work.tokens), "%.1f") if work.tokens else "",
                metric(work.operations, "FLOP", 2) if work.operations else "",
                _size(memory.total) if memory else "",
                f"{taken.value:.0f} s",
                f"{span(taken.low, taken.high)} s",
            ]
        )
    headers = ["to compute", "tokens", "operations", "memory per process", "time", "probably"]
    return tabulate(rows, headers, "github", colalign=("left", *["right"] * 5), disable_numparse=True)


def memory_table(estimates: Sequence[StageEstimate]) -> str:
    """Memory of each training by its parts, as Markdown."""
    trainings = {e.label: e.demand.memory.parts for e in estimates if e.demand.memory and isinstance(e.stage, Train)}
    table = pd.DataFrame.from_dict(trainings, orient="index").fillna(0)
    table = table.loc[:, (table > 0).any()]
    return table.map(_size).to_markdown(colalign=("left", *["right"] * len(table.columns)))


def read_models(prepared: Path) -> dict[str, ModelFacts]:
    """Read the facts of teacher and student from the artifact of `prepare`; it has none of a served teacher."""
    found = read_json(prepared / "models.json")
    return {planned_name(name): ModelFacts.model_validate(facts) for name, facts in found.items()}


def planned_name(model: str) -> str:
    """`teacher` or `student`, by the name that `prepare` has for a model; a run's only model counts as a student."""
    return "student" if model == "model" else model.removesuffix(".model")


def _size(size: float) -> str:
    return naturalsize(size, binary=True, format="%.1f")
