"""Upload of a trained student to the Hugging Face hub (docs/publishing.md)."""

from typing import Self

from pydantic import model_validator

from minillm.config.base import Strict

TOKEN_VARIABLE = "HF_TOKEN"
"""Environment variable with the token that may write to the hub; the token itself is in no file."""


class Export(Strict):
    """Upload of an exported student to the Hugging Face hub; the token is read from HF_TOKEN."""

    hub: str
    """Model repository, OWNER/NAME. It is made if it is not there, and holds what is exported and nothing else."""
    method: str | None = None
    """Method whose student is uploaded; may be left out if there is only one."""
    public: bool = False
    """Let everybody see the repository. A repository that is there already must be public or private as this says."""

    @model_validator(mode="after")
    def _has_an_owner(self) -> Self:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.hub)
        except HFValidationError as error:
            raise ValueError(f"`hub` is {self.hub!r}: {error}") from error
        if "/" not in self.hub:
            raise ValueError(f"`hub` is {self.hub!r}; give OWNER/NAME, with the user or organisation it belongs to")
        return self
