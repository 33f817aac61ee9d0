"""Low-rank adapters (LoRA, arXiv 2106.09685), by peft: trained instead of the weights, merged when a model is saved.

W + (α/r)·B·A replaces a matrix W, with B = 0 at the start; W and everything else stay as they were.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from minillm.config import Lora
from minillm.errors import StageError

ADAPTER = ".lora_"
"""Part of the name of every adapter weight."""
MATRICES = (torch.nn.Linear, Conv1D)
"""Modules that can have an adapter."""


def add_adapters(model: PreTrainedModel, lora: Lora) -> None:
    """Add adapters to a model's matrices and freeze everything else; A is drawn from torch's random stream.

    Raises:
        StageError: The model has no such modules, or one of them is its embedding or its output head.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes a second, which trainings without do not wait

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it by r
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.modules is None else list(lora.modules),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # where both layouts of matrices occur
            inject_adapter_in_model(config, model)
    except ValueError as error:
        names = sorted({name.rpartition(".")[2] for name, of in model.named_modules() if isinstance(of, MATRICES)})
        raise StageError(
            f"training.lora.modules {list(lora.modules or ())}: {model.config.model_type} has none of these; it has "
            f"{', '.join(names)}"
        ) from error
    _require_no_adapter_at_the_ends(model)


def _require_no_adapter_at_the_ends(model: PreTrainedModel) -> None:
    """Refuse adapters on embedding and head: losses use the head's matrix alone, which may be the embedding's too."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in ends and hasattr(module, "get_delta_weight")]
    if names:
        raise StageError(
            f"training.lora.modules: {', '.join(names)} is an embedding or the output head of "
            f"{model.config.model_type}, where no adapter is used; leave it out, or train without training.lora"
        )


@torch.no_grad()
def merged_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the weights of a model or a layer, its adapters merged, under the original names; it does not change."""
    weights = {
        name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items() if ADAPTER not in name
    }
    for name, layer in model.named_modules():
        product: Callable[[str], Tensor] | None = getattr(layer, "get_delta_weight", None)  # of peft's layers
        if product is not None:
            matrix = weights[f"{name}.weight"]
            # (α/r)·B·A, transposed where the layer's matrix is; the name is peft's for its only adapter.
            weights[f"{name}.weight"] = (matrix + product("default")).to(matrix.dtype)
    return weights
