"""The stages: the name of each, the module that computes it, and the settings that determine its result."""

from pathlib import Path

from minillm.files import read_json
from minillm.stages import (  # noqa: F401  (they declare the stages)
    measuring,
    pages,
    pretraining,
    reading,
    served,
    system2,
    training,
)
from minillm.stages.base import Job, Stage

STAGES: dict[str, type[Stage]] = {stage.kind: stage for stage in Stage.__subclasses__()}
"""Stages by kind."""


def load_job(spec: Path) -> Job[Stage]:
    """Read a job from its spec file."""
    raw = read_json(spec)
    return Job[Stage].model_validate({**raw, "settings": STAGES[raw["kind"]].model_validate(raw["settings"])})
