"""What a model directory must hold, seen without loading anything."""

from pathlib import Path

from minillm.errors import StageError

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""The first is preferred; transformers reads the second with torch's weights_only, which runs no code."""


def require_weights(directory: Path) -> None:
    """Check that a Hugging Face model directory holds a configuration and weights.

    Raises:
        StageError: If either is missing.
    """
    if not directory.is_dir():
        raise StageError(f"{directory} is a file; a model is a directory with config.json and model.safetensors")
    if not (directory / "config.json").is_file():
        raise StageError(f"model directory {directory} has no config.json; give a Hugging Face model directory")
    if not any(next(directory.glob(pattern), None) for pattern in WEIGHTS):
        found = ", ".join(sorted(p.name for p in directory.iterdir())) or "nothing"
        raise StageError(
            f"model directory {directory} has no weights (model.safetensors or pytorch_model.bin), only {found}; "
            "download them too, or give `architecture` instead to start from random weights"
        )
