"""Building blocks of every section of the configuration: names, seeds, sources, models."""

import re
import unicodedata
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from minillm.files import local_path
from minillm.patterns import check_pattern

NAME = re.compile(r"[^\W_][\w.-]*( [\w.-]+)*")
NAME_BYTES = 100
RESERVED = {
    "mean": "the column over all benchmarks",
    "initial": "the fine-tuned student that methods may start from",
    "metrics": "the file of a stage's curves",
    "system_metrics": "the file of a stage's use of the machine",
    "manifest": "the file that lists a result's files",
}
"""Names that the project itself uses beside those of entries, each with its meaning."""
SUFFIXES = {"_spread": "the spread over seeds", "_stderr": "a standard error"}
"""Endings that the project adds to names of metrics, each with its meaning."""


def check_name(name: str) -> str:
    """Return a name if it can be used in files, keys, metrics, labels and Markdown.

    Raises:
        ValueError: It cannot be used there, or is reserved.
    """
    if not NAME.fullmatch(name) or len(name.encode()) > NAME_BYTES:
        raise ValueError(
            f"{name!r} cannot be a name, since names become parts of files, metrics and labels; use letters, digits, "
            f"dots, dashes, underscores and single blanks, a letter or digit first, at most {NAME_BYTES} bytes"
        )
    if meaning := RESERVED.get(name.partition(".")[0].lower()):
        raise ValueError(f"{name!r} is reserved: it is {meaning}; choose another name")
    for suffix, meaning in SUFFIXES.items():
        if name.endswith(suffix):
            raise ValueError(f"{name!r} ends in {suffix}, which is reserved for {meaning}; choose another name")
    return name


def tell_apart(entries: "dict[str, Entry]") -> "dict[str, Entry]":
    """Return entries if a reader, and a file system that ignores case, can tell their names apart.

    Raises:
        ValueError: Two names differ only in the form of their letters.
    """
    known: dict[str, str] = {}
    for name in entries:
        other = known.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} differ only in the form of their letters; rename one")
    return entries


def _without_duplicates(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise ValueError(f"{list(seeds)} has {twice[0]} twice, which would count as evidence; leave it out")
    return seeds


Entry = TypeVar("Entry")
Name = Annotated[str, AfterValidator(check_name)]
"""Name of an experiment, or of an entry that the user adds."""
Entries = Annotated[dict[Name, Entry], AfterValidator(tell_apart)]
"""Entries by their names."""
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""Seed of random numbers."""
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(_without_duplicates)]
"""Different seeds, at least one."""
Temperature = Annotated[float, Field(ge=0.01, le=100.0)]
"""Divisor of the logits. Below the range, logits overflow float32: take the likeliest token instead."""
Pattern = Annotated[str, AfterValidator(check_pattern)]
"""Regular expression in the syntax of Python's `re`."""
LocalPath = Annotated[str, AfterValidator(lambda text: str(local_path(text)))]
"""Path on this machine (see `local_path`)."""


class Strict(BaseModel):
    """Base of every configuration section: unknown keys are refused, and values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def _changed(self, *fields: str) -> list[str]:
        """Return those of the fields whose value is not their default."""
        return [name for name in fields if getattr(self, name) != type(self).model_fields[name].default]


class Source(Strict):
    """Origin of rows of data: a local file or directory, or a dataset on the hub."""

    path: LocalPath | None = None
    """Local file (JSONL, JSON, plain text) or directory, relative to `data.directory`."""
    hub: str | None = None
    """Dataset name on the Hugging Face hub, e.g. databricks/databricks-dolly-15k."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    file: str | None = None
    """File or folder to read inside a directory or hub dataset that holds several."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 that the local file must have; without it, any content is accepted."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (local) and `hub` (hub name)")
        if self.sha256 is not None and self.hub is not None:
            raise ValueError("`sha256` is for a local file; pin a hub dataset by a commit in `revision`")
        return self


class Model(Strict):
    """Origin of a model's weights: the hub, a local directory, or random initialisation."""

    path: LocalPath | None = None
    """Local Hugging Face model directory."""
    hub: str | None = None
    """Model name on the Hugging Face hub, e.g. gpt2-xl."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] | None = None
    """Hugging Face configuration of a model to initialise at random; needs `model_type`.
    Vocabulary size and special tokens come from the tokenizer."""

    @property
    def origins(self) -> dict[str, Any]:
        """Fields of which exactly one is given."""
        return {"path": self.path, "hub": self.hub, "architecture": self.architecture}

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in self.origins.values()) != 1:
            *others, last = (f"`{field}`" for field in self.origins)
            raise ValueError(f"give exactly one of {', '.join(others)} and {last}")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("`architecture` needs `model_type` (gpt2, opt, llama, gptj, mistral, qwen2 …)")
        return self
