"""Micro-batches of real examples: as wide as their longest rows, and so wider than the mean example."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minillm.data.learnt_turns import learnt_ranges
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
    """Learnt tokens of a row, which alone go through the output head."""


@dataclass(frozen=True)
class RowLengths:
    """Tokens of every row."""

    prompts: NDArray[np.int64]
    responses: NDArray[np.int64]
    """Tokens behind each prompt."""
    learnt: NDArray[np.int64]
    """Those of them that are learnt."""

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "RowLengths":
        """Count the tokens of rows of the filter."""
        prompts, responses = (rows[column].map(len).to_numpy() for column in ("prompt_ids", "response_ids"))
        learnt = rows["turns"].map(lambda turns: sum(end - start for start, end in learnt_ranges(turns)))
        return cls(prompts, responses, learnt.to_numpy())


def mean_micro_batch(lengths: RowLengths, batch_size: int, limit: Limit, processes: int) -> MicroBatch:
    """Draw mini-batches as a training does and divide them as it does (`minillm.models.batches.micro_batches`).

    Args:
        lengths: Lengths of the rows.
        batch_size: Rows of a mini-batch, over all processes.
        limit: Most of a micro-batch.
        processes: Processes that share the mini-batch.
    """
    prompts, responses = lengths.prompts, lengths.responses
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
    return MicroBatch(len(sizes) / DRAWN, float(rows.mean()), prompt, response, float(lengths.learnt.mean()))


def mean_longest(responses: NDArray[np.int64], rows: int) -> float:
    """Return the mean length of the longest of some responses, in tokens."""
    return float(generator(stream(Purpose.PLANNED_BATCHES, 0)).choice(responses, size=(DRAWN, rows)).max(axis=1).mean())
