"""Prompt and response token lists as padded tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.streams import Purpose, generator, stream
from minillm.worker.processes import rank, world_size


@dataclass(frozen=True)
class Batch:
    """Rows of prompt and response that meet at one column: prompts padded on the left, responses on the right.

    Padding is token 0 and is marked by the mask alone, so the tokenizer needs no padding token.
    """

    tokens: Tensor  # (B, P + T) int64
    mask: Tensor  # (B, P + T) bool, True at real tokens
    prompt_width: int  # P ≥ 1

    @property
    def response(self) -> Tensor:
        """Response tokens (B, T)."""
        return self.tokens[:, self.prompt_width :]

    @property
    def response_mask(self) -> Tensor:
        """True at real response tokens (B, T)."""
        return self.mask[:, self.prompt_width :]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        return Batch(self.tokens.to(device), self.mask.to(device), self.prompt_width)


def make_batch(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Batch:
    """Pad B prompts and responses, lists of token ids, to one batch.

    Raises:
        ValueError: A prompt is empty, so a model has nothing to predict the first response token from.
    """
    prompt_width = max(len(p) for p in prompts)
    width = prompt_width + max(len(r) for r in responses)
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)  # (B, P + T)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)  # (B, P + T)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if not len(prompt):
            raise ValueError(f"row {row} has an empty prompt; render it through the template first")
        start, end = prompt_width - len(prompt), prompt_width + len(response)
        tokens[row, start:end] = torch.as_tensor([*prompt, *response])
        mask[row, start:end] = True
    return Batch(tokens, mask, prompt_width)


def micro_batches(rows: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield this process's share of a global mini-batch, in micro-batches of similar length to save padding.

    Args:
        rows: Row numbers of the mini-batch.
        lengths: Tokens of each of these rows.
        size: Most rows of a micro-batch.
    """
    ordered = [row for _, row in sorted(zip(lengths, rows, strict=True), key=lambda pair: pair[0])]
    mine = ordered[rank() :: world_size()]  # every process gets short and long rows
    for start in range(0, len(mine), size):
        yield mine[start : start + size]


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
