"""Checks of a model directory's weights by their headers: complete files, the model's names and shapes."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from minillm.errors import StageError, error_words
from minillm.models.model_files import weight_files
from minillm.words import few

LFS = b"version https://git-lfs"
"""First bytes of a git-lfs file that was not fetched."""
COMPUTED = re.compile(r"\.(masked_bias|causal_mask|inv_freq)$|(^|\.)h\.\d+\.attn\.bias$")
"""Masks and rotary frequencies that older versions saved and newer ones compute (GPT-2, GPT-J, CodeGen, Falcon)."""


def require_fitting_weights(name: str, directory: Path, fields: Mapping[str, Any], skeleton: PreTrainedModel) -> None:
    """Check that files hold every weight of a model, in its shape and as plain numbers, and nothing else.

    Only headers are read. Names are compared as transformers compares them when it loads, renamings included.

    Args:
        name: Name of the model, for errors.
        directory: Folder of its files.
        fields: Fields of its config.json.
        skeleton: The model on the meta device.

    Raises:
        StageError: Naming the file or the tensors, and the remedy.
    """
    quantised = fields.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "quantization_config") if isinstance(quantised, dict) else quantised
        _refuse_quantised(name, directory, str(method))
    tensors = read_headers(name, directory)
    weights = {n for n, _ in skeleton.named_parameters()}
    packed = [n for n, t in tensors.items() if not t.is_floating_point() and (n in weights or n.endswith(".weight"))]
    packed += [n for n, t in tensors.items() if t.is_floating_point() and t.element_size() < 2]
    if packed:
        _refuse_quantised(name, directory, f"{packed[0]} is {str(tensors[packed[0]].dtype).removeprefix('torch.')}")
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of the same differences is a table
    try:
        _, found = type(skeleton).from_pretrained(  # type: ignore[misc]  # a pair with output_loading_info
            None,
            config=skeleton.config,
            state_dict=tensors,
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # conversions of names and shapes fail in many ways
        raise StageError(
            f"{name}: the tensors in {directory} cannot become a {skeleton.config.model_type} ({error_words(error)}); "
            "save the model again with save_pretrained"
        ) from error
    finally:
        transformers.logging.set_verbosity(before)
    require_all_loaded(f"{name}: {directory}", skeleton, found)


def require_all_loaded(place: str, model: PreTrainedModel, found: Mapping[str, Any]) -> None:
    """Check the report of transformers on a loaded model: missing weights would have been filled at random.

    Args:
        place: Place of the weights, for errors.
        model: The loaded model.
        found: Its `output_loading_info`.

    Raises:
        StageError: Naming the first tensors that are missing, left over or of another shape.
    """
    buffers = [n for n, _ in model.named_buffers()]
    left = [n for n in found["unexpected_keys"] if not COMPUTED.search(n) and not _names_one(n, buffers)]
    shapes = [f"{n} {tuple(theirs)}, not {tuple(ours)}" for n, theirs, ours in sorted(found["mismatched_keys"])]
    groups = {"missing": sorted(found["missing_keys"]), "left over": sorted(left), "of another shape": shapes}
    told = [f"{len(names)} {what} ({few(names)})" for what, names in groups.items() if names]
    if told or found.get("error_msgs") or found.get("conversion_errors"):
        raise StageError(
            f"{place} does not hold the weights of the {model.config.model_type} in its config.json: "
            f"{'; '.join(told) or found.get('error_msgs') or found.get('conversion_errors')}. Missing weights would be "
            "random. Save the model again with save_pretrained: unwrapped, as it was trained, with its own config.json"
        )


def _names_one(name: str, buffers: list[str]) -> bool:
    """Return True if a name is that of a buffer, which the model computes, under another prefix or none."""
    return any(f".{name}".endswith(f".{buffer}") or f".{buffer}".endswith(f".{name}") for buffer in buffers)


def read_headers(name: str, directory: Path) -> dict[str, Tensor]:
    """Read names, shapes and types of all tensors in a directory, as tensors on the meta device.

    Args:
        name: Name of the model, for errors.
        directory: Folder of its files.

    Raises:
        StageError: A file is incomplete, holds more than tensors, or differs from the index.
    """
    tensors: dict[str, Tensor] = {}
    for path, indexed in weight_files(directory).items():
        found = _header(name, path)
        differing = sorted(found.keys() ^ indexed) if indexed is not None else []
        twice = sorted(found.keys() & tensors.keys())
        if differing or twice:
            raise StageError(
                f"{name}: {path} and the index beside it disagree on {few(differing or twice)}; download both again, "
                "from one version of the model"
            )
        tensors |= found
    return tensors


def _header(name: str, path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(len(LFS))
    if not start:
        raise StageError(f"{name}: {path} is empty; download it again")
    if start.startswith(LFS):
        raise StageError(
            f"{name}: {path} is a pointer of git-lfs, not the weights; run `git lfs pull` in {path.parent}"
        )
    safe = path.suffix == ".safetensors"
    try:
        if safe:
            return load_state_dict(path, map_location="meta")
        loaded = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken file fails in many ways
        what, remedy = (
            ("weights", "it is damaged, was not downloaded to the end or has another format: download it again")
            if safe
            else ("weights alone", "code in a pickle is never run: get the model as safetensors")
        )
        raise StageError(f"{name}: {path} cannot be read as {what} ({error_words(error)}); {remedy}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise StageError(f"{name}: {path} holds more than tensors by name; save the model with save_pretrained")
    return loaded


def _refuse_quantised(name: str, directory: Path, how: str) -> None:
    raise StageError(
        f"{name}: the weights in {directory} are quantised ({how}), and are neither trained nor scored here; take the "
        "model as it was before, in bfloat16 or float32"
    )
