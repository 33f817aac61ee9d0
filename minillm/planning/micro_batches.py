"""Micro-batches of real examples: as wide as their longest rows, and so wider than the mean example."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minillm.models.batches import Limit, groups
from minillm.streams import Purpose, generator, stream

DRAWN = 64
"""Mini-batches that the mean is taken over."""


@dataclass(frozen=True)
class MicroBatch:
    """Mean micro-batch of one process in a training."""

    count: float
    """Micro-batches in an optimizer step of one process."""
    rows: float
    prompt: float
    """Columns of a row's prompt, the longest of its micro-batch."""
    response: float
    """Columns of its response, likewise."""
    tokens: float
    """Real response tokens of a row, which alone go through the output head."""


def mean_micro_batch(
    prompts: NDArray[np.int64], responses: NDArray[np.int64], batch_size: int, limit: Limit, processes: int
) -> MicroBatch:
    """Draw mini-batches as a training does and divide them as it does (`minillm.models.batches.micro_batches`).

    Args:
        prompts: Tokens of every prompt.
        responses: Tokens of every response.
        batch_size: Rows of a mini-batch, over all processes.
        limit: Most of a micro-batch.
        processes: Processes that share the mini-batch.
    """
    drawn = generator(stream(Purpose.PLANNED_BATCHES, 0)).integers(len(prompts), size=(DRAWN, batch_size))
    pairs = list(zip(prompts.tolist(), responses.tolist(), strict=True))
    sizes: list[tuple[int, int, int]] = []
    for batch in drawn:
        ordered = batch[np.argsort(prompts[batch] + responses[batch], kind="stable")]
        for group in groups(ordered.tolist(), pairs, limit, processes):
            chosen = group[::processes]
            sizes.append((len(chosen), prompts[chosen].max(), responses[chosen].max()))
    rows, *columns = np.array(sizes).T  # (micro-batches,) each
    prompt, response = (float(np.average(of, weights=rows)) for of in columns)
    return MicroBatch(len(sizes) / DRAWN, float(rows.mean()), prompt, response, float(responses.mean()))


def mean_longest(responses: NDArray[np.int64], rows: int) -> float:
    """Return the mean length of the longest of some responses, in tokens."""
    return float(generator(stream(Purpose.PLANNED_BATCHES, 0)).choice(responses, size=(DRAWN, rows)).max(axis=1).mean())
