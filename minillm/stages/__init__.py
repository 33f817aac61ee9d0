"""The stages: the name of each, the module that computes it, and the settings that determine its result."""

from pathlib import Path

from minillm.files import read_json
from minillm.stages.base import Job, Stage, Summary
from minillm.stages.measuring import (
    Calibration,
    Cost,
    Diversity,
    DownstreamScore,
    Exposure,
    Generate,
    HeldOut,
    Judging,
    Preference,
    Score,
    Speed,
)
from minillm.stages.pages import Card, Report, StudyReport
from minillm.stages.reading import (
    Benchmarks,
    DownstreamTasks,
    EncodedPrompts,
    Filter,
    HeldOutTexts,
    Pack,
    Prepare,
    Questions,
)
from minillm.stages.training import Respond, Train, training_only

STAGES: dict[str, type[Stage]] = {stage.kind: stage for stage in Stage.__subclasses__()}
"""Stages by kind."""

__all__ = [
    "STAGES",
    "Benchmarks",
    "Calibration",
    "Card",
    "Cost",
    "Diversity",
    "DownstreamScore",
    "DownstreamTasks",
    "EncodedPrompts",
    "Exposure",
    "Filter",
    "Generate",
    "HeldOut",
    "HeldOutTexts",
    "Job",
    "Judging",
    "Pack",
    "Preference",
    "Prepare",
    "Questions",
    "Report",
    "Respond",
    "Score",
    "Speed",
    "Stage",
    "StudyReport",
    "Summary",
    "Train",
    "load_job",
    "training_only",
]


def load_job(spec: Path) -> Job[Stage]:
    """Read a job from its spec file."""
    raw = read_json(spec)
    return Job[Stage].model_validate({**raw, "settings": STAGES[raw["kind"]].model_validate(raw["settings"])})
