"""Conditions for a finished run's student to become the champion of its experiment (docs/promotion.md)."""

from pydantic import Field

from minillm.config.base import Strict
from minillm.config.evaluation import Metric


class Promotion(Strict):
    """Conditions for a student to replace the present champion."""

    method: str | None = None
    """Row of the result table that is put forward; without it, the student with the highest mean of the metric."""
    metric: Metric = "rouge_l"
    """Metric to compare by, prompt by prompt and as a mean over all benchmarks; each must be measured by it."""
    significance: float = Field(default=0.05, ge=0.001, lt=1.0)
    """Two-sided p-value below which a gain counts, in a sign-flip test over prompts; the test's lowest is 0.0001."""
