"""When a finished run's student becomes the champion of its experiment (docs/promotion.md)."""

from typing import Literal

from pydantic import Field

from minillm.config.base import Strict


class Promotion(Strict):
    """What a student must show to take the place of the present champion."""

    method: str | None = None
    """Row of the result table that is put forward; without it, the student whose mean of the metric is highest."""
    metric: Literal["rouge_l", "exact_match"] = "rouge_l"
    """What is compared prompt by prompt, its mean over all benchmarks."""
    significance: float = Field(default=0.05, ge=0.001, lt=1.0)
    """Two-sided p-value of the paired bootstrap below which a gain counts; it knows none below 0.0005."""
