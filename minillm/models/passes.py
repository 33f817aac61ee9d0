"""Passes through models whose weights are shared out among the processes, which all make at the same moments."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from minillm.worker.processes import device, world_size

IN_STEP = "in_step"
"""Attribute of a model through which the processes pass together."""


def is_sharded(model: PreTrainedModel) -> bool:
    """Tell if the weights of a model's body are shared out at the moment."""
    return any(p.numel() < getattr(p, "ds_numel", 0) for p in model.base_model.parameters())


@contextmanager
def in_step(*models: PreTrainedModel) -> Iterator[None]:
    """Let all processes pass through sharded models at the same moments, however many passes each of them needs.

    Before each pass the processes agree on the model that is next. One that needs another model, or none any more, runs
    that one for the others' sake, on a single token. No process leaves before all are done; meanwhile none may send
    other messages. Models that are in step already stay so.
    """
    shared = [model for model in models if is_sharded(model) and IN_STEP not in vars(model)]
    if not shared or world_size() == 1:
        yield
        return
    steps, hooks = _Steps(shared), []
    for number, model in enumerate(shared):
        vars(model)[IN_STEP] = True
        wait = functools.partial(steps.wait_for, number)
        hooks.append(model.base_model.register_forward_pre_hook(wait, prepend=True))
    try:
        yield
        steps.run_others_until(_Steps.NONE)
    finally:
        for model, hook in zip(shared, hooks, strict=True):
            hook.remove()
            del vars(model)[IN_STEP]


class _Steps:
    """This process's passes through the models among those of the others."""

    NONE = -1
    """Number of no model."""

    def __init__(self, models: list[PreTrainedModel]) -> None:
        self.models = models
        self.for_others = False
        """True while a pass for the others is under way, on which they have agreed."""

    def wait_for(self, number: int, *_: object) -> None:
        """Run what the others need until it is the turn of a model."""
        if not self.for_others:
            self.run_others_until(number)

    @torch.no_grad()
    def run_others_until(self, number: int) -> None:
        """Pass through the models that others need until all agree on one, or on none."""
        while (agreed := self._agree(number)) != number:
            self.for_others = True
            token = torch.zeros(1, 1, dtype=torch.long, device=device())
            self.models[agreed].base_model(input_ids=token, use_cache=False)
            self.for_others = False

    def _agree(self, number: int) -> int:
        """Return the highest number that any process asks for."""
        asked = torch.tensor(number, device=device())
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return int(asked)
