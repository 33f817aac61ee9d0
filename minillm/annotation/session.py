"""A session of annotation: pairs one by one, with the two answers in an order that differs between annotators."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from minillm.annotation.judgements import Choice, Judgement, Judgements
from minillm.annotation.pairs import Pair
from minillm.store.manifest import text_digest

Preferred = Literal["a", "tie", "b"]
"""Choice of an annotator, who knows the answers only as A and B."""
OPPOSITE: dict[Preferred, Preferred] = {"a": "b", "tie": "tie", "b": "a"}
CHOICES: dict[Preferred, Choice] = {"a": "win", "tie": "tie", "b": "loss"}
"""Meaning of a choice if A is the method's answer."""
SAID: dict[Choice, Preferred] = {"win": "a", "tie": "tie", "loss": "b"}


@dataclass(frozen=True)
class AnnotationSession:
    """Pairs in the order in which everybody sees them, numbered from 1, and their judgements."""

    pairs: Sequence[Pair]
    judgements: Judgements

    def texts(self, annotator: str, number: int) -> tuple[str, str]:
        """Return answers A and B of a pair."""
        first, second = self.pairs[number - 1].texts
        return (second, first) if swapped(annotator, self.pairs[number - 1]) else (first, second)

    def choose(self, annotator: str, number: int, preferred: Preferred) -> None:
        """Keep a choice; it replaces the annotator's earlier one on this pair."""
        pair = self.pairs[number - 1]
        choice = CHOICES[OPPOSITE[preferred] if swapped(annotator, pair) else preferred]
        said = {"annotator": annotator, "choice": choice, "time": datetime.now(UTC)}
        self.judgements.keep(Judgement(**pair.compared.model_dump(), **said))

    def judged(self) -> dict[str, dict[int, Preferred]]:
        """Return each annotator's choices so far, by the number of the pair."""
        judged: dict[str, dict[int, Preferred]] = {}
        choices = self.judgements.of(pair.compared for pair in self.pairs)
        for number, (pair, of_pair) in enumerate(zip(self.pairs, choices, strict=True), start=1):
            for annotator, choice in of_pair.items():
                said = SAID[choice]
                judged.setdefault(annotator, {})[number] = OPPOSITE[said] if swapped(annotator, pair) else said
        return judged

    def judged_by(self, annotator: str) -> dict[int, Preferred]:
        """Return one annotator's choices so far, by the number of the pair."""
        return self.judged().get(annotator, {})

    def next_open(self, annotator: str, after: int = 0) -> int | None:
        """Return the next pair without a choice, starting again after the last one; None if all have one."""
        done = self.judged_by(annotator)
        numbers = range(1, len(self.pairs) + 1)
        return next((number for number in (*numbers[after:], *numbers[:after]) if number not in done), None)


def swapped(annotator: str, pair: Pair) -> bool:
    """Decide whether A is the other method's answer, by a fixed coin for each annotator and pair."""
    return int(text_digest([annotator, *pair.compared.identity]), 16) % 2 == 1
