"""Stages whose results people read: the report, the comparison of a study, the exported model with its card."""

from typing import ClassVar

from minillm.config import Model, TeacherModel
from minillm.stages.base import Stage


class Report(Stage):
    """Write the report: tables, plots and the page.

    `train/ROLE` is there for each model trained here, the initial student included, and `examples` if there is one;
    the other names with a role are there for each row of the table, or each that was measured so.
    """

    kind: ClassVar[str] = "report"
    module: ClassVar[str] = "minillm.reporting.report"
    inputs: ClassVar[tuple[str, ...]] = (
        "benchmarks",
        "cost",
        "prompts/*",
        "score/*",
        "diversity/*",
        "responses/*",
        "exposure/*",
        "calibration/*",
        "held_out/*",
        "downstream/*",
        "judge/*",
        "preference?",
        "train/*",
        "examples?",
    )
    is_page: ClassVar[bool] = True
    runs_model: ClassVar[bool] = False
    name: str
    roles: tuple[str, ...]
    """Rows of the table, in order; the first is the teacher, or else the model the others are measured against."""
    benchmarks: tuple[str, ...]
    models: dict[str, Model | TeacherModel]
    """Origins of the rows that were not trained here."""
    planned: dict[str, float]
    """Seconds that `--plan` estimated for each stage, by its label; empty without a plan."""


class StudyReport(Stage):
    """Compare the variants of a configuration.

    Inputs are named `KIND/VARIANT/SEED`: the scores of the variant's row in a run's table, and what else it has.
    """

    kind: ClassVar[str] = "study"
    module: ClassVar[str] = "minillm.reporting.study.study_report"
    kinds: ClassVar[tuple[str, ...]] = ("score", "train", "exposure", "diversity", "calibration", "held_out")
    """Kinds of stages whose results of a variant are read."""
    inputs: ClassVar[tuple[str, ...]] = tuple(f"{kind}/*" for kind in kinds)
    is_page: ClassVar[bool] = True
    shown: ClassVar[tuple[str, ...]] = ("score", "difference", "p_value")
    runs_model: ClassVar[bool] = False
    name: str
    base: str
    method: str | None
    """Row of the result tables that is compared; None if each variant is a row of its own."""
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

    Output: a directory that `AutoModelForCausalLM.from_pretrained` loads.
    """

    kind: ClassVar[str] = "model"
    module: ClassVar[str] = "minillm.reporting.model_card"
    inputs: ClassVar[tuple[str, ...]] = (
        "model",
        "examples",
        "report",
    )
    runs_model: ClassVar[bool] = False
    role: str
    config: dict
    """The resolved configuration without `runtime`, `promotion` and `export`, for the card's provenance."""
    hub: str | None = None
    """Repository on the hub that it is uploaded to, for the card's example."""


class Upload(Stage):
    """Upload an exported model to a repository of the Hugging Face hub. Output: `upload.json`, with its address."""

    kind: ClassVar[str] = "upload"
    module: ClassVar[str] = "minillm.reporting.uploading"
    inputs: ClassVar[tuple[str, ...]] = ("model",)
    runs_model: ClassVar[bool] = False
    role: str
    hub: str
    public: bool
    endpoint: str
    """Address of the hub."""
