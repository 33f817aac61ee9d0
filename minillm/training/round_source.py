"""Where the responses of a round come from: the student now, its earlier rounds, or the data (method.md §5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from minillm.config import Policy
from minillm.streams import Purpose, generator, stream

RISE = 0.1
"""What an adaptive share rises by, and what the validation loss must have risen by, in nats (DistiLLM's code)."""
Pair = tuple[list[int], list[int]]
"""Prompt and response, token ids."""


@dataclass
class RoundSource:
    """The choice for each round, and the rollouts that are kept for it. All processes choose alike."""

    policy: Policy
    seed: int
    rounds: int
    """Rounds of the whole training."""
    share: float = field(init=False)
    """Probability of the student's text (GKD's λ, DistiLLM's φ)."""
    loss: float | None = field(default=None, init=False)
    """Validation loss that the next ones are compared with where the share is adaptive, nats."""
    kept: list[Pair] = field(default_factory=list, init=False)
    """Rollouts of earlier rounds, the newest last."""

    def __post_init__(self) -> None:
        given = self.policy.student_share
        self.share = 0.0 if given == "adaptive" else given

    def choose(self, index: int) -> Literal["student", "replay", "dataset"]:
        """Choose the source of a round."""
        number = generator(stream(Purpose.ROUND_SOURCE, self.seed, index)).random()
        if number >= self.share:
            return "dataset"
        capacity = self.policy.replay
        if capacity is None or len(self.kept) < capacity or number < self.share * (1 - index / self.rounds):
            return "student"
        return "replay"

    def keep(self, pairs: Sequence[Pair]) -> None:
        """Keep the rollouts of a round, in place of the oldest if there are too many."""
        if self.policy.replay is not None:
            self.kept = [*self.kept, *pairs][-self.policy.replay :]

    def replay(self, index: int) -> list[Pair]:
        """Draw as many of the kept rollouts as a round has, each at most once."""
        draw = generator(stream(Purpose.REPLAY, self.seed, index))
        return [self.kept[i] for i in draw.choice(len(self.kept), self.policy.rollouts, replace=False)]

    def validated(self, loss: float) -> None:
        """Take note of a validation loss: an adaptive share rises where it has risen."""
        if self.policy.student_share != "adaptive":
            return
        if self.loss is None:
            self.loss = loss
        elif loss >= self.loss + RISE:
            self.share, self.loss = min(1.0, self.share + RISE), loss

    def state(self) -> dict[str, Any]:
        """Return what a later attempt needs."""
        return {"share": self.share, "loss": self.loss, "kept": self.kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        vars(self).update(state)
