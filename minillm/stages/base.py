"""What every stage declares of itself, and the job that a worker is given.

A stage's settings hold exactly the fields that change its output; its inputs are other artifacts or source files.
Nothing heavy is imported in this folder, so that a flow that finds everything cached ends within seconds.
"""

from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import Field, SerializeAsAny

from minillm.config import Runtime, Strict

Summary = dict[str, float | str]
"""What `run` returns: flat names and values for the manifest and the tracked run."""


class Stage(Strict):
    """Settings of one stage. Subclasses name the stage and the module whose `run` computes it."""

    kind: ClassVar[str]
    """Begins the names of its artifacts."""
    module: ClassVar[str]
    """Has `run(job: Job[…]) -> Summary`, which writes its files under `job.output`."""
    shown: ClassVar[tuple[str, ...]] = ()
    """First parts of the names in its summary that the flow run's own tracked run shows too, by row of the table."""
    shares_work: ClassVar[bool] = False
    """Whether all of `runtime.processes` compute it together; the others are one process each."""
    reads_only: ClassVar[bool] = False
    """Whether it only reads data, so that a plan computes it, too."""
    is_page: ClassVar[bool] = False
    """Whether its files are shown with the run of the whole flow."""
    for_evaluation: ClassVar[bool] = False
    """Whether its sources are what models are measured on."""


Settings = TypeVar("Settings", bound=Stage, covariant=True)


class Job(Strict, Generic[Settings]):
    """One resolved stage, as the worker reads it from its spec file."""

    kind: str
    settings: SerializeAsAny[Settings]
    inputs: dict[str, Path]
    """Artifact directories and source files, by the names in the stage's docstring."""
    output: Path
    """Folder that becomes the artifact."""
    work: Path
    """Folder that survives a failure: checkpoints, parts already done."""
    runtime: Runtime = Field(default_factory=Runtime)
