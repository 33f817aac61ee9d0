"""Prompt and response token lists as padded tensors."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.config import Runtime
from minillm.streams import Purpose, generator, stream
from minillm.worker.processes import rank, world_size


@dataclass(frozen=True)
class Batch:
    """Rows of prompt and response that meet at one column: prompts padded on the left, responses on the right.

    Padding is token 0 and is marked by the mask alone, so the tokenizer needs no padding token.
    """

    tokens: Tensor  # (B, P + T) int64
    mask: Tensor  # (B, P + T) bool, True at real tokens
    response_mask: Tensor  # (B, T) bool, True at response tokens that are learnt or scored
    prompt_width: int  # P ≥ 1

    @property
    def response(self) -> Tensor:
        """Response tokens (B, T)."""
        return self.tokens[:, self.prompt_width :]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        return Batch(self.tokens.to(device), self.mask.to(device), self.response_mask.to(device), self.prompt_width)


def make_batch(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    learnt: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> Batch:
    """Pad B prompts and responses, lists of token ids, to one batch.

    Args:
        prompts: B prompts.
        responses: What follows each of them.
        learnt: Half-open ranges of each response that are learnt; without it, all of it is.

    Raises:
        ValueError: A prompt is empty, so a model has nothing to predict the first response token from.
    """
    prompt_width = max(len(p) for p in prompts)
    width = prompt_width + max(len(r) for r in responses)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)  # (B, P + T)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)  # (B, P + T)
    response_mask = mask[:, prompt_width:] if learnt is None else torch.zeros_like(mask[:, prompt_width:])  # (B, T)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt):
            raise ValueError(f"row {row} has an empty prompt; render it through the template first")
        start, end = prompt_width - len(prompt), prompt_width + len(response)
        tokens[row, start:end] = torch.as_tensor([*prompt, *response])
        mask[row, start:end] = True
        for first, behind in learnt[row] if learnt is not None else ():
            response_mask[row, first:behind] = True
    return Batch(tokens, mask, response_mask, prompt_width)


@dataclass(frozen=True)
class Limit:
    """Most rows, and most tokens with padding, that a process runs in one pass. One row always fits."""

    rows: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, runtime: Runtime) -> "Limit":
        """Return the configured limit."""
        return cls(runtime.micro_batch_size, runtime.micro_batch_tokens)

    def holds(self, rows: int, width: int) -> bool:
        """Tell if so many rows, padded to a width in tokens, are within the limit."""
        return rows <= 1 or ((self.rows is None or rows <= self.rows) and rows * width <= (self.tokens or math.inf))


Lengths = Mapping[int, tuple[int, int]] | Sequence[tuple[int, int]]
"""Tokens of prompt and response by row."""


def lengths_of(prompts: Iterable[Sequence[int]], responses: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Return the tokens of each prompt and response."""
    return [(len(prompt), len(response)) for prompt, response in zip(prompts, responses, strict=True)]


def micro_batches(rows: Sequence[int], lengths: Lengths, limit: Limit) -> list[list[int]]:
    """Divide this process's share of a global mini-batch into micro-batches of similar length, to save padding.

    Every process gets as many micro-batches as the others, as ZeRO needs. The last may be empty where the rows cannot
    be divided among the processes.

    Args:
        rows: Row numbers of the mini-batch.
        lengths: Lengths of these rows.
        limit: Most of a micro-batch.
    """
    ordered = sorted(rows, key=lambda row: sum(lengths[row]))
    # Every process gets short and long rows.
    return [group[rank() :: world_size()] for group in groups(ordered, lengths, limit, world_size())]


def groups(ordered: Sequence[int], lengths: Lengths, limit: Limit, processes: int) -> Iterator[list[int]]:
    """Divide rows, in their order, into groups that are within a limit once dealt to so many processes."""
    group: list[int] = []
    prompt = response = 0
    for start in range(0, len(ordered), processes):
        dealt = ordered[start : start + processes]  # a row for each process
        wide = [max(lengths[row][side] for row in dealt) for side in (0, 1)]
        wider = max(prompt, wide[0]), max(response, wide[1])
        if group and not limit.holds(len(group) // processes + 1, sum(wider)):
            yield group
            group, wider = [], (wide[0], wide[1])
        group += dealt
        prompt, response = wider
    if group:
        yield group


def shuffled_slice(count: int, purpose: Purpose, seed: int, start: int, number: int) -> list[int]:
    """Take examples of endless passes over range(count), each in an order of its own.

    This is a pure function of its arguments: a resumed run needs only the position to go on.

    Args:
        count: Number of examples.
        purpose: Names the random stream.
        seed: Seed of all orders.
        start: Number of examples already taken.
        number: Number of examples to take, at least 1.
    """
    first, offset = divmod(start, count)
    passes = range(first, (start + number - 1) // count + 1)
    orders = [generator(stream(purpose, seed, epoch)).permutation(count) for epoch in passes]
    return np.concatenate(orders)[offset : offset + number].tolist()
