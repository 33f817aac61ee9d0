"""The cases: each asks a trainer for a few gradients and returns by how much they differ, as a share of their size.

To run them on another trainer, write the two methods of `Trainer` for it and call `examine`.
"""

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from benchmarks.conformance.models import END, Pair, Row, every_response, exact_gradient, model, pair

TOLERANCE = 1e-4
"""Largest relative error of a pass; rounding in float32 makes some 1e-6."""
Gradient = dict[str, Tensor]
"""Gradients by the names of the student's parameters, before clipping."""


class NotApplicableError(Exception):
    """The trainer claims nothing of the kind; the message says what it documents."""


class Step(NamedTuple):
    """Loss and gradient of an optimizer step."""

    loss: float
    gradient: Gradient


class Trainer(Protocol):
    """Interface of a trainer with its options set."""

    beta: float | None
    """Objective that it claims: β of GKD's divergence at each token, or None for KL[q ‖ p] of whole responses."""
    teacher_mix: float
    """Share of the teacher in the sampling of each token."""

    def step(self, pair: Pair, rows: Sequence[Row], micro_batch: int, temperature: float = 1.0) -> Step:
        """Take one optimizer step on a batch; a trainer that samples must sample these responses."""
        ...

    def weights(self, pair: Pair, rows: Sequence[Row], interrupted: bool) -> Gradient:
        """Return the student's weights after four steps of two rows, or after three, a checkpoint and the fourth."""
        ...


ROWS = (
    Row((3, 4, 5, 6, 7), (8, END)),
    Row((5, 9), (3, 4, 10, 11, 5, 6)),
    Row((7, 3, 8), (6, 2, END)),
    Row((2,), (10, END)),
)
"""Prompts, responses and their sums have several lengths, so that each way to pad has something to do."""


def size(of: Gradient) -> Tensor:
    """Return the norm of all gradients together, ()."""
    return torch.cat([value.flatten().double() for value in of.values()]).norm()


def difference(got: Gradient, wanted: Gradient) -> float:
    """Return |got − wanted| / |wanted|."""
    return float(size({name: got[name] - value for name, value in wanted.items()}) / size(wanted))


def mean(steps: Sequence[Step], weights: Sequence[float]) -> Gradient:
    """Return the weighted mean of the steps' gradients."""
    shares = torch.tensor(weights) / sum(weights)
    return {name: torch.stack([step.gradient[name] for step in steps], dim=-1) @ shares for name in steps[0].gradient}


@functools.cache
def usual(trainer: Trainer) -> Step:
    """Return the step on all rows in one pass, which most cases compare with."""
    return trainer.step(pair(), ROWS, len(ROWS))


def micro_batches(trainer: Trainer) -> float:
    """A batch in one pass, and row by row with gradient accumulation."""
    return difference(trainer.step(pair(), ROWS, 1).gradient, usual(trainer).gradient)


def padding(trainer: Trainer, kind: str) -> float:
    """Two rows in one batch, and the mean of each alone: over tokens or over rows, whichever the trainer takes."""
    rows = ROWS[:2]
    alone = [trainer.step(pair(kind), [row], 1) for row in rows]
    together = trainer.step(pair(kind), rows, len(rows)).gradient
    lengths = [len(row.response) for row in rows]
    return min(difference(together, mean(alone, weights)) for weights in (lengths, [1] * len(rows)))


def order(trainer: Trainer) -> float:
    """The rows, and the rows from the last to the first."""
    return difference(trainer.step(pair(), ROWS[::-1], len(ROWS)).gradient, usual(trainer).gradient)


def end_is_learnt(trainer: Trainer) -> float:
    """A response with its end token, and without: were it masked, both gradients would have one direction."""
    ended, cut = (trainer.step(pair(), [Row((3, 4), tokens)], 1).gradient for tokens in ((5, END), (5,)))
    scale = size(cut) / size(ended)
    apart = difference({name: scale * value for name, value in ended.items()}, cut)
    return 0.0 if apart > 1e-2 else 1.0


def padding_is_the_end(trainer: Trainer) -> float:
    """Padding with a token of its own, and with the end token."""
    return difference(trainer.step(pair(pad=END), ROWS, len(ROWS)).gradient, usual(trainer).gradient)


def temperature(trainer: Trainer) -> float:
    """Temperature 2, and temperature 1 on models with half the logits; the bodies' gradients must be the same."""
    halved = pair()
    with torch.no_grad():
        for side in (halved.student, halved.teacher):
            side.lm_head.weight.div_(2)
    heated = trainer.step(pair(), ROWS, len(ROWS), temperature=2.0)
    wanted = trainer.step(halved, ROWS, len(ROWS)).gradient
    return difference(heated.gradient, {name: wanted[name] for name in wanted if not name.startswith("lm_head")})


def padded(of: Pair, student_rows: int, teacher_rows: int) -> Pair:
    """Return a pair with more embeddings and rows of the head than the tokenizer has words; theirs are zero."""
    sides = []
    for side, rows in ((of.student, student_rows), (of.teacher, teacher_rows)):
        large, state = model(0, entries=rows), side.state_dict()
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[name] = torch.nn.functional.pad(state[name], (0, 0, 0, rows - of.vocabulary))
        large.load_state_dict(state)
        sides.append(large)
    return Pair(sides[0], sides[1].requires_grad_(False), of.vocabulary)


def vocabulary(trainer: Trainer, student_rows: int, teacher_rows: int) -> float:
    """Models whose heads have rows that no token uses, and the same without them: the same gradient, theirs zero."""
    wanted = usual(trainer).gradient
    got = trainer.step(padded(pair(), student_rows, teacher_rows), ROWS, len(ROWS)).gradient
    whole = {name: torch.zeros_like(of) for name, of in got.items()}
    for name, of in wanted.items():
        whole[name][: len(of)] = of
    return difference(got, whole)


def equal_models(trainer: Trainer) -> float:
    """A teacher that equals the student: no loss and no gradient."""
    of = pair()
    equal = trainer.step(dataclasses.replace(of, teacher=copy.deepcopy(of.student)), ROWS, len(ROWS))
    other = usual(trainer)
    return max(abs(equal.loss / other.loss), float(size(equal.gradient) / size(other.gradient)))


def exact(trainer: Trainer) -> float:
    """The mean over every response there is, weighted by its probability, and the gradient of the objective itself.

    Steps are of one response. Each gives the mean over its tokens, so it counts as often as it has tokens.
    """
    of = pair(entries=2)
    rows = [Row((1, 1), response) for response in every_response(2, limit=4)]
    probabilities, wanted = exact_gradient(of, rows, trainer.beta, trainer.teacher_mix)
    steps = [trainer.step(of, [row], 1) for row in rows]
    weights = [probability * len(row.response) for probability, row in zip(probabilities, rows, strict=True)]
    got = mean(steps, weights)
    return difference({name: value * sum(weights) for name, value in got.items()}, wanted)


def resume(trainer: Trainer) -> float:
    """Four steps at a stretch, and three, a checkpoint and the fourth in another trainer: the weights move alike."""
    start = {name: value.detach() for name, value in pair().student.named_parameters()}
    ends = (trainer.weights(pair(), ROWS, interrupted) for interrupted in (True, False))
    return difference(*({name: of[name] - value for name, value in start.items()} for of in ends))
