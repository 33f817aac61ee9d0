"""The declarations that every stage makes, and the job that a worker gets.

A stage's settings are exactly the fields that change its output. Its inputs are artifacts, source files and models.
Nothing heavy is imported in this folder, so that a flow whose results are all cached ends within seconds.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import ConfigDict, Field, SerializeAsAny

from minillm.config import Runtime, Strict

WITHOUT_DESCRIPTIONS = ConfigDict(use_attribute_docstrings=False)
"""For models that no person writes. Finding the docstrings of fields looks at every imported module, and each stage's
`Job[…]` would do it again in a worker that has imported thousands."""
Summary = dict[str, float | str]
"""Result of `run`: flat names and values for the manifest and the tracked run."""


class Stage(Strict):
    """Settings of one stage. Subclasses name the stage and the module whose `run` computes it."""

    model_config = WITHOUT_DESCRIPTIONS
    kind: ClassVar[str]
    """Name of the stage, with which the names of its artifacts begin."""
    module: ClassVar[str]
    """Module with `run(job: Job[…]) -> Summary`, which writes the stage's files under `job.output`."""
    inputs: ClassVar[tuple[str, ...]]
    """Names of what the stage reads. One that ends in `?` may be missing; `NAME/*` stands for any number of names."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Summary entries, by the first part of their names, that the flow's tracked run shows too, by row of the table.
    Words among them stand beside the stage on the console as well."""
    shares_work: ClassVar[bool] = False
    """True if all of `runtime.processes` compute the stage together; otherwise it is one process."""
    reads_only: ClassVar[bool] = False
    """True if the stage only reads data, so that a plan computes it too."""
    runs_model: ClassVar[bool] = True
    """False if no model runs on this machine for the stage; a plan then counts neither work nor memory for it."""
    is_page: ClassVar[bool] = False
    """True if the stage's files are shown with the run of the whole flow."""
    for_evaluation: ClassVar[bool] = False
    """True if models are measured on the stage's sources."""

    def require_inputs(self, names: Collection[str]) -> None:
        """Check that what the stage is given is what it reads.

        Raises:
            ValueError: It is not.
        """
        missing = [name for name in self.inputs if name[-1] not in "?*" and name not in names]
        unknown = [name for name in names if not any(fnmatchcase(name, known.rstrip("?")) for known in self.inputs)]
        if missing or unknown:
            raise ValueError(f"stage {self.kind!r} reads {self.inputs}: missing are {missing}, unknown are {unknown}")

    def shown_words(self, summary: Summary) -> str:
        """Return the words among the entries of a summary that are shown."""
        return "; ".join(value for name, value in summary.items() if name in self.shown and isinstance(value, str))


Settings = TypeVar("Settings", bound=Stage, covariant=True)


class Job(Strict, Generic[Settings]):
    """One resolved stage, as the worker reads it from its spec file."""

    model_config = WITHOUT_DESCRIPTIONS
    kind: str
    settings: SerializeAsAny[Settings]
    inputs: dict[str, Path]
    """Artifact directories and source files, under the names that the stage declares."""
    output: Path
    """Folder that becomes the artifact."""
    work: Path
    """Folder that survives a failure, for checkpoints and finished parts."""
    runtime: Runtime = Field(default_factory=Runtime)
