"""Checks of a model directory's files that load nothing."""

from pathlib import Path

from minillm.errors import StageError
from minillm.files import read_json
from minillm.words import few

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""The first is preferred; transformers reads the second with torch's weights_only, which runs no code."""
WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, in the order of `WEIGHTS`; weights in shards have an index beside them, `NAME.index.json`."""
ADAPTER_CONFIG = "adapter_config.json"


def require_weights(directory: Path) -> None:
    """Check that a Hugging Face model directory holds a configuration and weights, and no adapter.

    Raises:
        StageError: Either is missing, or an adapter lies beside the weights.
    """
    if not directory.is_dir():
        raise StageError(f"{directory} is a file; a model is a directory with config.json and model.safetensors")
    if (directory / ADAPTER_CONFIG).is_file():
        raise StageError(
            f"model directory {directory} holds an adapter ({ADAPTER_CONFIG}), which transformers would add to the "
            "weights it loads, even to those that have it in them already; merge it into its base (peft's "
            f"merge_and_unload) if that is not done, and remove {ADAPTER_CONFIG} and the adapter's weights"
        )
    if not (directory / "config.json").is_file():
        raise StageError(f"model directory {directory} has no config.json; give a Hugging Face model directory")
    if not any(next(directory.glob(pattern), None) for pattern in WEIGHTS):
        found = ", ".join(sorted(p.name for p in directory.iterdir())) or "nothing"
        raise StageError(
            f"model directory {directory} has no weights (model.safetensors or pytorch_model.bin), only {found}; "
            "download them too, or give `architecture` instead to start from random weights"
        )


def weight_files(directory: Path) -> dict[Path, set[str] | None]:
    """List the files that transformers loads from a directory.

    Returns:
        Each file with the tensors that the index lists for it; None if all weights are in one file.

    Raises:
        StageError: Files are missing, or others lie beside them that no index mentions.
    """
    for pattern, whole in zip(WEIGHTS, WHOLE, strict=True):
        index = directory / f"{whole}.index.json"
        if (directory / whole).is_file():
            files: dict[Path, set[str] | None] = {directory / whole: None}
        elif index.is_file():
            files = {**_shards(index)}
        else:
            continue
        strays = sorted(path.name for path in set(directory.glob(pattern.replace("*", "-*-of-*"))) - set(files))
        if strays:
            raise StageError(
                f"{directory} loads from {few([path.name for path in files])}, and {few(strays)} beside it would "
                "not be read; keep the files of one model only, with the index that came with them"
            )
        return files
    found = sorted(path.name for pattern in WEIGHTS for path in directory.glob(pattern))
    raise StageError(
        f"{directory} has {few(found)}, but neither {' nor '.join(WHOLE)} nor the index of shards "
        f"({WHOLE[0]}.index.json); download the missing file"
    )


def _shards(index: Path) -> dict[Path, set[str]]:
    """Return the shards that an index names, with the tensors of each."""
    try:
        places = read_json(index)["weight_map"]
        named = {str(shard) for shard in places.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{index} is no index of shards (no readable `weight_map`); download it again") from error
    missing = sorted(shard for shard in named if Path(shard).name != shard or not (index.parent / shard).is_file())
    if missing or not named:
        raise StageError(
            f"{index} names {len(named)} files, of which {len(missing)} are not beside it ({few(missing)}); download "
            "them too"
        )
    return {index.parent / shard: {t for t, place in places.items() if place == shard} for shard in sorted(named)}
