"""The DeepSpeed engine around a student: one code path from a laptop's CPU to a cluster."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.config import Runtime, Training
from minillm.models.lora import merged_weights
from minillm.models.output_head import HeadedModel
from minillm.models.sharding import is_layer, whole_head
from minillm.worker.processes import rank, world_size

GROUP_WEIGHTS = 1 << 25
"""Most weights of a parameter group, which ZeRO joins to one tensor. AdamW needs several times its size besides."""


def make_engine(
    model: HeadedModel, training: Training, total_steps: int, runtime: Runtime, universal: bool = False
) -> Any:
    """Wrap a model in a DeepSpeed engine with AdamW, its schedule, clipping and ZeRO.

    Micro-batches go through `in_turn`, as their number varies where they hold so many tokens; no loss is divided by it.

    Args:
        model: Model in the dtype of `training.precision`.
        training: Hyper-parameters; the batch size is global.
        total_steps: Optimizer steps of the whole run, at which the cosine ends.
        runtime: ZeRO stage.
        universal: Prepare to load a checkpoint in DeepSpeed's universal form.
    """
    zero: dict[str, Any] = {"stage": runtime.zero_stage_in(training.precision)}
    if zero["stage"] == 3:
        # DeepSpeed would treat blocks of experts as leaves, whose gradients it takes twice where a loss adds two passes
        # (rollouts and plain text). transformers stacks experts, so each process uses the same weights at every step.
        zero["leaf_module"] = {"classes": []}
    if runtime.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    config = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": training.batch_size // world_size(),
        "gradient_clipping": training.gradient_clip,
        "zero_optimization": zero,
        "bf16": {"enabled": training.precision == "bfloat16"},
        "checkpoint": {"load_universal": universal},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    optimizer = _optimizer(model, training)
    schedule: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, training, total_steps))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=config)
    return engine


def in_turn(engine: Any, micro_batches: Sequence[Callable[[], dict[str, Tensor]]]) -> Iterator[dict[str, Tensor]]:
    """Compute the losses of a step's micro-batches one by one; the engine is told which is the last."""
    for number, compute in enumerate(micro_batches, start=1):
        engine.set_gradient_accumulation_boundary(number == len(micro_batches))
        yield compute()


def take_step(engine: Any) -> float:
    """Step the engine behind the last micro-batch; return the global gradient norm before clipping.

    DeepSpeed keeps no norm of plain float32 gradients, so it is measured here.
    """
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    kept = engine.get_global_grad_norm()
    return float(norm if kept is None else kept)


@contextlib.contextmanager
def gathered_weights(engine: Any) -> Iterator[PreTrainedModel]:
    """Yield the model with all of its weights in place, as generation needs under ZeRO-3.

    Meanwhile DeepSpeed's hooks are off: they would fetch and release every layer's weights at every token, and wait for
    the other processes each time.
    """
    if not engine.zero_optimization_partition_weights():
        yield engine.module.model
        return
    offload = engine.optimizer.parameter_offload
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        yield engine.module.model
        offload._register_deepspeed_module(offload.module)


@contextlib.contextmanager
def generating_weights(engine: Any, runtime: Runtime) -> Iterator[PreTrainedModel]:
    """Yield the model to generate with: all of its weights in place or, by `gather_student: false`, the head alone.

    In that case layers are gathered at every pass (`minillm.models.passes.in_step`).
    """
    if runtime.gather_student or not engine.zero_optimization_partition_weights():
        with gathered_weights(engine) as model:
            yield model
    else:
        with whole_head(engine.module.model):
            yield engine.module.model


def weights_to_save(engine: Any) -> dict[str, Tensor]:
    """Return the weights, adapters merged: under ZeRO-3 in the CPU's memory of the first process, layer after layer.

    Every process must call this; under ZeRO-3 the others get nothing.
    """
    model: PreTrainedModel = engine.module.model
    if not engine.zero_optimization_partition_weights():
        return merged_weights(model)
    layers = {f"{name}.": layer for name, layer in model.named_modules() if is_layer(layer, model)}
    inside = {p for layer in layers.values() for p in layer.parameters()}
    weights: dict[str, Tensor] = {}
    with deepspeed.zero.GatheredParameters([p for p in model.parameters() if p not in inside]):
        ends = {name: of for name, of in model.state_dict().items() if not name.startswith(tuple(layers))}
        weights |= _copies_of_first(ends)
    for prefix, layer in layers.items():
        with deepspeed.zero.GatheredParameters(list(layer.parameters())):
            weights |= _copies_of_first({prefix + name: of for name, of in merged_weights(layer).items()})
    return weights


def _copies_of_first(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy weights to the first process's CPU; those that are one weight, as a tied head is, stay one."""
    copies = {of.data_ptr(): of.detach().to("cpu", copy=True) for of in weights.values()} if rank() == 0 else {}
    return {name: copies[of.data_ptr()] for name, of in weights.items() if rank() == 0}


def _optimizer(model: torch.nn.Module, training: Training) -> torch.optim.Optimizer:
    # Biases and norms do not decay, as in the reference code.
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    decays = ((matrices, training.weight_decay), (vectors, 0.0))
    groups = [{"params": part, "weight_decay": decay} for weights, decay in decays for part in _parts(weights)]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=training.betas)


def _parts(weights: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Divide weights, in their order, into parts of at most `GROUP_WEIGHTS`, or of one weight."""
    part: list[torch.nn.Parameter] = []
    for weight in weights:
        if part and sum(p.numel() for p in (*part, weight)) > GROUP_WEIGHTS:
            yield part
            part = []
        part.append(weight)
    if part:
        yield part


def _schedule(step: int, training: Training, total_steps: int) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then constant or a cosine down to zero."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    if training.schedule == "constant":
        return 1.0
    progress = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
