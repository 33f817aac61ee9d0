"""Stages whose results people read: the report, the comparison of a study, the exported model with its card."""

from typing import ClassVar

from minillm.config import Model
from minillm.stages.base import Stage


class Report(Stage):
    """Write the report: tables, plots and the page.

    Inputs: `benchmarks`, `cost`; `prompts/ROLE`, `score/ROLE`, `diversity/ROLE` and `responses/ROLE` (generate) for
    each row of the table; `exposure/ROLE`, `calibration/ROLE`, `held_out/ROLE`, `downstream/ROLE` and `judge/ROLE` for
    each row measured so; `preference` if people compared answers; `train/ROLE` for each model trained here, including
    the initial student, and `examples` if there is one.
    """

    kind: ClassVar[str] = "report"
    module: ClassVar[str] = "minillm.reporting.report"
    is_page: ClassVar[bool] = True
    name: str
    roles: tuple[str, ...]
    """Rows of the table, in order; the first is the teacher, or else the model the others are measured against."""
    benchmarks: tuple[str, ...]
    models: dict[str, Model]
    """Origins of the rows that were not trained here."""
    planned: dict[str, float]
    """Seconds that `--plan` estimated for each stage, by its label; empty without a plan."""


class StudyReport(Stage):
    """Compare the variants of a configuration.

    Inputs: `score/VARIANT/SEED` and, if it was trained, `train/VARIANT/SEED`, for the compared row of every run.
    """

    kind: ClassVar[str] = "study"
    module: ClassVar[str] = "minillm.reporting.study.study_report"
    is_page: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("score", "difference", "p_value")
    name: str
    base: str
    method: str
    changes: dict[str, tuple[str, ...]]
    """Overrides of each variant whose runs are all there, in the order of the table."""
    baseline: str
    seeds: tuple[int, ...]
    """Training seeds."""
    points: dict[str, float] | None
    """Each variant's value of the one number they differ in; None if they differ in something else."""
    parameter: str | None
    """Field of that number."""
    missing: tuple[str, ...]
    """Runs that failed; their variants are left out."""


class Card(Stage):
    """Export the distilled model as an ordinary model directory with its card.

    Inputs: `model`, `examples`, `report`. Output: a directory that `AutoModelForCausalLM.from_pretrained` loads.
    """

    kind: ClassVar[str] = "model"
    module: ClassVar[str] = "minillm.reporting.model_card"
    role: str
    config: dict
    """The resolved configuration without `runtime` and `promotion`, for the card's provenance."""
