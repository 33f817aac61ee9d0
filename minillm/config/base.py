"""What every section of the configuration is made of."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from minillm.files import local_path

LocalPath = Annotated[str, AfterValidator(lambda text: str(local_path(text)))]
"""A path of this machine (see `local_path`)."""


class Strict(BaseModel):
    """Base of every configuration section: unknown keys are refused and values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def _changed(self, *fields: str) -> list[str]:
        """Those of the fields that were given another value than their default."""
        return [name for name in fields if getattr(self, name) != type(self).model_fields[name].default]


class Source(Strict):
    """Where rows of data come from: a local file or directory, or a dataset by its hub name."""

    path: LocalPath | None = None
    """Local file (JSONL, JSON, plain text) or directory, relative to `data.directory`."""
    hub: str | None = None
    """Dataset name on the Hugging Face hub, e.g. databricks/databricks-dolly-15k."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    file: str | None = None
    """File or folder inside a directory or hub dataset that holds several."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the local file, where no other content will do."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (local) and `hub` (hub name)")
        if self.sha256 is not None and self.hub is not None:
            raise ValueError("`sha256` is of a local file; pin a hub dataset by a commit in `revision`")
        return self


class Model(Strict):
    """Where a model's weights come from: the hub, a local directory, or random initialisation."""

    path: LocalPath | None = None
    """Local Hugging Face model directory."""
    hub: str | None = None
    """Model name on the Hugging Face hub, e.g. gpt2-xl."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""
    architecture: dict[str, Any] | None = None
    """Hugging Face configuration of a model to initialise at random; needs `model_type`.
    Vocabulary size and special tokens are taken from the tokenizer."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.path, self.hub, self.architecture)) != 1:
            raise ValueError("give exactly one of `path`, `hub` and `architecture`")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("`architecture` needs `model_type` (gpt2, opt, llama, gptj, mistral, qwen2 …)")
        return self
