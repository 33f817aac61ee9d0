"""When a finished run's student becomes the champion of its experiment (docs/promotion.md)."""

from pydantic import Field

from minillm.config.base import Strict
from minillm.config.evaluation import Metric


class Promotion(Strict):
    """What a student must show to take the place of the present champion."""

    method: str | None = None
    """Row of the result table that is put forward; without it, the student whose mean of the metric is highest."""
    metric: Metric = "rouge_l"
    """What is compared prompt by prompt, its mean over all benchmarks; rouge_l_characters where a benchmark has it."""
    significance: float = Field(default=0.05, ge=0.001, lt=1.0)
    """Two-sided p-value of a sign-flip test over prompts below which a gain counts; it knows none below 0.0001."""
