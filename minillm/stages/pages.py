"""Stages whose result is read by people: the report, the comparison of a study, the exported model with its card."""

from typing import ClassVar

from minillm.config import Model
from minillm.stages.base import Stage


class Report(Stage):
    """Tables, plots and the page.

    Inputs: `benchmarks`, `cost`; `prompts/ROLE`, `score/ROLE`, `diversity/ROLE` and `responses/ROLE` (generate) for
    each row of the table;
    `exposure/ROLE`, `calibration/ROLE`, `held_out/ROLE`, `downstream/ROLE` and `judge/ROLE` for those measured,
    `preference` where people compared answers; `train/ROLE` for each model trained here, the initial student too, and
    `examples` where any was.
    """

    kind: ClassVar[str] = "report"
    module: ClassVar[str] = "minillm.reporting.report"
    is_page: ClassVar[bool] = True
    name: str
    roles: tuple[str, ...]
    """Rows of the table, in order; the first is the teacher, or else what the others are measured against."""
    benchmarks: tuple[str, ...]
    models: dict[str, Model]
    """Where the rows come from that were not trained here."""
    planned: dict[str, float]
    """Seconds of each stage, by its name, that `--plan` estimated; none where it was not asked."""


class StudyReport(Stage):
    """Variants of a configuration against each other.

    Inputs: `score/VARIANT/SEED` and, where it was trained, `train/VARIANT/SEED`: the compared row of every run.
    """

    kind: ClassVar[str] = "study"
    module: ClassVar[str] = "minillm.reporting.study.stage"
    is_page: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("score", "difference", "p_value")
    name: str
    base: str
    method: str
    changes: dict[str, tuple[str, ...]]
    """Overrides of each variant whose runs are all there, in the order of the table."""
    baseline: str
    seeds: tuple[int, ...]
    """Of training."""
    points: dict[str, float] | None
    """Value of the one number that variants differ in; None where they differ in something else."""
    parameter: str | None
    """Its field."""
    missing: tuple[str, ...]
    """Runs that failed; the variants they belong to are left out."""


class Card(Stage):
    """The distilled model as an ordinary model directory with its card.

    Inputs: `model`, `examples`, `report`; output: what `AutoModelForCausalLM.from_pretrained` loads.
    """

    kind: ClassVar[str] = "model"
    module: ClassVar[str] = "minillm.reporting.model_card"
    role: str
    config: dict
    """The resolved configuration without `runtime` and `promotion`, for the card's provenance."""
