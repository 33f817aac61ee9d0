"""Frozen models whose weights are shared out among the processes by ZeRO-3.

Each process keeps its part of every weight; the output head alone is whole, since losses read it without the model. A
layer is gathered when a pass reaches it and released behind it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.models.causal_lm import load_model, model_directory
from minillm.worker.processes import device, rank, world_size

# DeepSpeed would compile this at start-up: half a minute, and an error without a compiler. Gloo serves as well.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

Sizes = dict[nn.Parameter, tuple[torch.Size, torch.dtype]]
"""Shape and precision of each weight."""


def load_sharded(path: Path, dtype: torch.dtype, offload: Literal["cpu", "none"] = "none") -> PreTrainedModel:
    """Load this process's part of a model's weights.

    The first process alone reads the files, into the memory of its CPU, and hands out layer after layer. The others
    never hold more than their parts and one layer.

    Args:
        path: Train artifact or model directory.
        dtype: Precision of the weights.
        offload: Where the parts are kept: in the memory of the CPU, or on the device.
    """
    model = _first_whole(path, dtype)
    sizes = _buffers_and_sizes_of_first(model)
    layers = [module for module in model.modules() if is_layer(module, model)]
    zero: dict[str, Any] = {
        "stage": 3,
        "stage3_prefetch_bucket_size": max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0),
        "stage3_param_persistence_threshold": 0,  # small weights are shared out, too
        "memory_efficient_linear": False,  # it would replace PyTorch's function, for the student as well
        "offload_param": {"device": offload, "pin_memory": offload == "cpu" and torch.cuda.is_available()},
    }
    config = {"train_batch_size": world_size(), "zero_optimization": zero, "steps_per_print": 10**9}
    for part in (*layers, model):  # embeddings and whatever else stands between layers come last
        _allocate(part, sizes)
        deepspeed.zero.Init(module=part, config_dict_or_path=config)  # the first process's weights, to all
    _own_head(model)
    if layers:  # each is gathered at once, whichever of its weights a pass needs (mixtures of experts)
        deepspeed.utils.set_z3_leaf_modules(model.base_model, list({type(layer) for layer in layers}))
    engine, *_ = deepspeed.initialize(model=model.base_model, config=config)
    vars(model)["engine"] = engine  # its hooks gather the layers, and would go with it
    return model.eval()


def is_layer(module: nn.Module, model: PreTrainedModel) -> bool:
    """Tell if a part of a model is one of the layers that transformers would not divide among devices."""
    return type(module).__name__ in (model._no_split_modules or ())


def _first_whole(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load all weights in the first process; the model of the others has none."""
    if rank() == 0:
        return load_model(path, dtype).requires_grad_(False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_directory(path)), dtype=dtype)
    return model.requires_grad_(False)


def _buffers_and_sizes_of_first(model: PreTrainedModel) -> Sizes:
    """Put the first process's buffers, which are small, into each model; return shape and dtype of its weights."""
    facts: list[Any] = [dict(model.named_buffers()), {name: (p.shape, p.dtype) for name, p in model.named_parameters()}]
    dist.broadcast_object_list(facts, src=0)
    buffers, sizes = facts
    for name, buffer in buffers.items():
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, buffer.to(device()))
    return {p: sizes[name] for name, p in model.named_parameters()}


def _allocate(part: nn.Module, sizes: Sizes) -> None:
    """Allocate the weights of a part of the model that has none; a weight in several places stays one."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in part.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if p.is_meta:
                shape, dtype = sizes[p]
                if p not in made:
                    made[p] = nn.Parameter(torch.empty(shape, dtype=dtype, device=device()), requires_grad=False)
                setattr(module, name, made[p])


def _own_head(model: PreTrainedModel) -> None:
    """Give every process the whole output head for good."""
    head, body = _head(model), set(model.base_model.parameters())
    for name, copy in _whole(head).items():
        tied = head._parameters.pop(name) in body
        setattr(head, name, copy.data if tied else copy)  # a tied weight counts once, as the embedding's


def _head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()
    assert head is not None
    return head


def _whole(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return copies of a layer's weights on every process."""
    kept = dict(layer.named_parameters(recurse=False))
    with deepspeed.zero.GatheredParameters(list(kept.values())):
        return {name: nn.Parameter(p.detach().clone(), requires_grad=False) for name, p in kept.items()}


@contextmanager
def whole_head(model: PreTrainedModel) -> Iterator[None]:
    """Give every process a whole output head while its weights, which may be the embedding's too, are shared out."""
    layer = _head(model)
    kept = dict(layer.named_parameters(recurse=False))
    layer._parameters.update(_whole(layer))
    try:
        yield
    finally:
        layer._parameters.update(kept)
