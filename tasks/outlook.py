"""Models that a plan's distillation would start from, and the verdict of their comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minillm.config import Config
from minillm.planning.outlook_figures import OwnWays, figures
from minillm.planning.verdict import Subject, figures_table, verdict_words, ways_words
from minillm.stages.measuring import Outlook
from minillm.stages.training import Train
from minillm.store.manifest import Artifact
from tasks.running.computation import Input
from tasks.running.dry_run import DryStage, Pending


@dataclass(frozen=True)
class Start:
    """A model that a distillation starts from."""

    weights: Input | None
    """The model as far as it is there; None where its weights are random."""
    to_come: tuple[str, ...]
    """Labels of the trainings that it goes through first, the last one first."""


def outlook_of(config: Config, stages: Sequence[DryStage]) -> tuple[dict[str, Start], Outlook | None]:
    """Return the models that a distillation starts from, and their comparison if both have weights."""
    chosen = _distillation(stages)
    if chosen is None or config.served:
        return {}, None
    train, inputs = chosen
    by_label = {stage.label: stage for stage in stages}
    starts = {"teacher": _start(inputs["teacher"], by_label), "student": _start(inputs.get("weights"), by_label)}
    if None in [start.weights for start in starts.values()]:
        return starts, None
    select_by = train.method.training.select_by
    metric = None if select_by == "validation_loss" else select_by
    data, strip = config.data, config.evaluation.strip
    return starts, Outlook(template=data.template, metric=metric, max_tokens=data.max_tokens, strip=strip)


def outlook_words(starts: Mapping[str, Start], looked: Sequence[Mapping[str, Any]]) -> str:
    """Say whether the distillation will probably work.

    Args:
        starts: The models that it starts from; empty if none is to be computed.
        looked: Contents of each worker's outlook.json.
    """
    if not starts:
        return "Will it work? Not asked: no training that compares with a teacher is to be computed"
    if scratch := [name for name, start in starts.items() if start.weights is None]:
        return (
            f"Will it work? Not asked: {' and '.join(scratch)} will be trained from random weights; run `minillm plan` "
            "again when that is done"
        )
    records = [record for one in looked for record in one["records"]]
    ways = looked[0]["ways"]
    subjects = {
        name: Subject(
            tuned=isinstance(start.weights, Artifact) and start.weights.kind == Train.kind,
            final=not start.to_come,
            ways=OwnWays.model_validate(ways[name]) if name in ways else None,
        )
        for name, start in starts.items()
    }
    agree = ways_words(subjects)
    if not records:
        return f"Will it work? Not measured: the models are too slow here to answer some rows in time\n\n{agree}"
    found, metric = figures(records), looked[0]["metric"]
    return "\n\n".join([agree, figures_table(found, metric), verdict_words(found, subjects, metric)])


def _distillation(stages: Sequence[DryStage]) -> tuple[Train, Mapping[str, Input]] | None:
    """Return settings and inputs of the training to be computed that compares with a teacher, on rollouts if any is."""
    missing = [(stage.stage, stage.inputs) for stage in stages if stage.found is None and "teacher" in stage.inputs]
    trainings = [(stage, inputs) for stage, inputs in missing if isinstance(stage, Train)]
    return min(trainings, key=lambda found: found[0].method.policy is None, default=None)


def _start(weights: Input | None, by_label: Mapping[str, DryStage]) -> Start:
    to_come: list[str] = []
    while isinstance(weights, Pending):
        to_come.append(weights.label)
        weights = by_label[weights.label].inputs.get("weights")
    return Start(weights, tuple(to_come))
