"""Whether a training on rollouts has collapsed: the figures of its rounds against thresholds (method.md §3)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from minillm.config import Collapse

COLLAPSED = "train/collapsed_in_round"
"""Metric of a training that has collapsed: `CollapseWatch.first_bad`."""


@dataclass
class CollapseWatch:
    """Judge of each round once it has been scored. Every process sees the same figures, and so decides the same."""

    limits: Collapse
    rounds: int = field(default=0, init=False)
    """Rounds seen."""
    bad: int = field(default=0, init=False)
    """Rounds in a row, up to the latest one, with a figure beyond its threshold."""
    sound_step: int = field(default=0, init=False)
    """Optimizer steps before the latest round without such a figure was sampled."""
    first_bad: int = field(default=0, init=False)
    """Round with which the training collapsed, counted from 1; 0 as long as it has not."""
    words: str = field(default="", init=False)
    """What happened and what was done; empty as long as it has not collapsed."""

    @property
    def stopped(self) -> bool:
        """True if the training ends here."""
        return self.first_bad > 0 and self.limits.on_collapse == "stop"

    @property
    def safe_step(self) -> float:
        """Last step whose validated weights may be kept if the next rounds turn out to have collapsed."""
        return self.sound_step if self.limits.on_collapse == "stop" else float("inf")

    def see(self, step: int, figures: Mapping[str, float]) -> bool:
        """Judge a round that was sampled after so many optimizer steps; return True if it shows a collapse first.

        Args:
            step: Optimizer steps taken.
            figures: Figures of the round by name.
        """
        if self.first_bad:
            return False
        beyond = list(self._beyond(figures))
        self.rounds += 1
        self.bad = self.bad + 1 if beyond else 0
        self.sound_step = self.sound_step if beyond else step
        if self.bad < self.limits.patience:
            return False
        self.first_bad = self.rounds - self.bad + 1
        done = "it went on, so read its results with care"
        if self.stopped:
            done = f"it was stopped after step {step + 1}, and its weights are the best up to step {self.sound_step}"
        self.words = f"training collapsed from round {self.first_bad} on ({', '.join(beyond)}); {done}"
        return True

    def _beyond(self, figures: Mapping[str, float]) -> Iterator[str]:
        for field_name, threshold in self.limits.thresholds.items():
            side, name = field_name.split("_", 1)
            value = figures[name]
            if value < threshold if side == "least" else value > threshold:
                yield f"{name} {value:.3g}, {side} {threshold:g}"

    def state(self) -> dict[str, Any]:
        """Return what a later attempt needs."""
        return {name: value for name, value in vars(self).items() if name != "limits"}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        vars(self).update(state)
