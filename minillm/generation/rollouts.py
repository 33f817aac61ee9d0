"""Rollouts: responses sampled from p̃ = α·p + (1−α)·q with all that the update needs, from one pass of both models.

A coin of probability α says which model the next token is drawn from, which has exactly the law p̃ (method.md §2). A
model therefore runs only where its coin falls, over all tokens since it last ran at once. The coins belong to the
position in the response and are the same for all responses of a round: each response has exactly the law p̃, while two
responses of a round are dependent through their coins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.generation.cache import CachedModel
from minillm.generation.drawing import Decoding, draw
from minillm.generation.sampling import Sampler, steps_between_looks
from minillm.generation.slots import Request, Response, Slots
from minillm.models.batches import make_batch
from minillm.models.output_head import OutputHead, output_head, response_hidden
from minillm.objectives.vocabulary import token_log_probs


@dataclass(frozen=True)
class Rollout:
    """A sampled response of T tokens and what both models think of it; tensors on the CPU."""

    tokens: list[int]
    """Token ids, with the end token where it ended by itself."""
    student_log_prob: Tensor
    """log q(y_t) under the student that sampled (T,)."""
    teacher_log_prob: Tensor
    """log p(y_t) (T,)."""
    teacher_log_normalizer: Tensor
    """log Σ exp of the teacher's logits (T,)."""
    teacher_hidden: Tensor
    """Last hidden states (T, H) from which the teacher's distribution follows without another forward pass."""


@dataclass(frozen=True)
class RolloutSampler:
    """Student, teacher, and how responses are sampled from their mixture."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    ends: tuple[int, ...]
    """Tokens that end a response, whichever model draws them."""
    vocabulary: int
    """Entries of the tokenizer."""
    teacher_mix: float
    """α."""
    temperature: float
    """Of both models."""
    batch_size: int
    """Rows at once in generation."""
    scoring_batch_size: int
    """Rows of one full forward pass of the teacher, where α is 0."""

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], coins: tuple[int, ...]) -> list[Rollout]:
        """Sample every request, in the order of the requests.

        Args:
            requests: Of one round, or this process's share of it.
            coins: Names the random stream of the round's coins.
        """
        if self.teacher_mix == 0.0:
            return self._from_student(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].max_tokens))
        longest = max(r.max_tokens for r in requests)
        from_teacher = np.random.default_rng(coins).random(longest) < self.teacher_mix
        rollouts: dict[int, Rollout] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = _Mixed(self, [requests[i] for i in chosen], from_teacher)
            rollouts |= dict(zip(chosen, batch.sample(), strict=True))
        return [rollouts[i] for i in range(len(requests))]

    def _from_student(self, requests: Sequence[Request]) -> list[Rollout]:
        """Without mixing: continuous batching of the student, then the teacher reads the whole responses."""
        decoding = Decoding(temperature=self.temperature)
        sampler = Sampler(self.student, self.ends, self.vocabulary, decoding, self.batch_size)
        responses = sampler.sample(requests)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt) + len(responses[i].tokens))
        teacher, device = output_head(self.teacher, self.vocabulary), next(self.teacher.parameters()).device
        rollouts: dict[int, Rollout] = {}
        for start in range(0, len(order), self.scoring_batch_size):
            rows = order[start : start + self.scoring_batch_size]
            batch = make_batch([requests[i].prompt for i in rows], [responses[i].tokens for i in rows]).to(device)
            hidden = response_hidden(self.teacher, batch)
            scores = token_log_probs(hidden, teacher, batch.response[batch.response_mask], self.temperature)
            lengths = [len(responses[i].tokens) for i in rows]
            parts = zip(*(_apart(values, lengths) for values in (*scores, hidden)), strict=True)
            for i, (log_prob, log_normalizer, states) in zip(rows, parts, strict=True):
                student = responses[i].log_prob.to(log_prob.dtype)
                rollouts[i] = Rollout(responses[i].tokens, student, log_prob, log_normalizer, states)
        return [rollouts[i] for i in range(len(requests))]


@dataclass
class _Scores:
    """What one model says of tokens of many responses, in pieces as they came."""

    keep_hidden: bool
    """Whether hidden states are wanted too."""

    places: list[np.ndarray] = field(default_factory=list)
    """(n, 2): request and position in the response."""
    log_prob: list[Tensor] = field(default_factory=list)
    log_normalizer: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    unscored: list[tuple[np.ndarray, Tensor, Tensor]] = field(default_factory=list)
    """Places, tokens and hidden states of tokens that the other model drew."""

    def add(self, places: np.ndarray, log_prob: Tensor, log_normalizer: Tensor, hidden: Tensor) -> None:
        """Note the scores of n tokens."""
        self.places.append(places)
        self.log_prob.append(log_prob)
        self.log_normalizer.append(log_normalizer)
        if self.keep_hidden:
            self.hidden.append(hidden)

    def score(self, head: OutputHead, temperature: float) -> None:
        """Score what the other model drew, all at once: large products are far faster than one at each catching up."""
        if self.unscored:
            places, tokens, hidden = zip(*self.unscored, strict=True)
            states = torch.cat(hidden)
            self.add(np.concatenate(places), *token_log_probs(states, head, torch.cat(tokens), temperature), states)
            self.unscored.clear()

    def by_response(self, lengths: Sequence[int]) -> list[list[Tensor]]:
        """log-probabilities, log-normalisers and hidden states, each split by response, in order of position."""
        request, position = np.concatenate(self.places).T
        inside = np.flatnonzero(position < np.asarray(lengths)[request])
        order = torch.from_numpy(inside[np.lexsort((position[inside], request[inside]))])
        kept = [pieces for pieces in (self.log_prob, self.log_normalizer, self.hidden) if pieces]
        return [_apart(torch.cat(pieces).cpu()[order], lengths) for pieces in kept]


def _apart(values: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Values of all tokens by response, each in memory of its own: pickled views would each carry the whole."""
    return [part.clone() for part in values.cpu().split(list(lengths))]


class _Mixed:
    """One batch of responses from p̃. Its rows start together, so that one coin is every row's."""

    def __init__(self, sampler: RolloutSampler, requests: Sequence[Request], from_teacher: np.ndarray) -> None:
        self.sampler, self.from_teacher = sampler, from_teacher
        device = next(sampler.student.parameters()).device
        self.slots = Slots(requests, len(requests), sampler.ends, device)
        self.slots.admit(range(len(requests)))
        self.done = np.zeros(len(requests), dtype=bool)
        self.models = [
            CachedModel(model, sampler.vocabulary, len(requests), self.slots.columns)
            for model in (sampler.student, sampler.teacher)
        ]
        self.scores = [_Scores(keep_hidden=False), _Scores(keep_hidden=True)]
        self.responses: dict[int, Response] = {}

    def sample(self) -> list[Rollout]:
        """Draw token after token until all rows have ended and both models have seen them."""
        look_every = steps_between_looks(self.slots.device)
        step = 0
        while not self.done[: self.slots.active].all():
            self._step(int(self.from_teacher[step]))
            step += 1
            if step % look_every == 0 or (self.slots.lengths >= self.slots.limits)[: self.slots.active].all():
                self._notice_ended()
                self._release()
        for which in (0, 1):
            self._catch_up(which)
            self.scores[which].score(self.models[which].head, self.sampler.temperature)
        self._release()
        tokens = [self.responses[i].tokens for i in range(len(self.responses))]
        student, teacher = (scores.by_response([len(t) for t in tokens]) for scores in self.scores)
        return [Rollout(*parts) for parts in zip(tokens, student[0], *teacher, strict=True)]

    def _step(self, which: int) -> None:
        """Draw the next token of every row from one model."""
        slots = self.slots
        going = (~self.done & (slots.lengths < slots.limits))[: slots.active]
        last = self._catch_up(which)
        assert last is not None
        logits = self.models[which].head.logits(last, self.sampler.temperature)
        drawn = draw(logits, slots.uniforms())
        rows = np.flatnonzero(going)
        kept = torch.from_numpy(rows).to(slots.device)
        places = self._places(rows, slots.lengths[rows])
        self.scores[which].add(places, drawn.log_prob[kept], drawn.log_normalizer[kept], last[kept])
        slots.append(drawn, going)

    def _catch_up(self, which: int) -> Tensor | None:
        """Show a model the tokens it has not seen and note what it says of those that it did not draw.

        Returns:
            The hidden states (rows, H) that predict what follows each row; None if there was nothing to see.
        """
        slots, model = self.slots, self.models[which]
        until = np.where(self.done, slots.lengths - 1, slots.lengths)
        until = np.maximum(until, model.seen)
        if (until == model.seen)[: slots.active].all():
            return None
        hidden, columns = model.run(slots.tokens, until, 0, slots.active)
        predicted = columns + 1
        known = (predicted >= slots.prompts[: slots.active, None]) & (predicted < slots.lengths[: slots.active, None])
        rows, entries = np.nonzero(known & (columns >= 0))
        if len(rows):
            at, entry, column = (
                torch.from_numpy(index).to(slots.device) for index in (rows, entries, predicted[rows, entries])
            )
            places = self._places(rows, predicted[rows, entries])
            self.scores[which].unscored.append((places, slots.tokens[at, column], hidden[at, entry]))
        last = torch.from_numpy((columns >= 0).sum(axis=1) - 1).clamp(min=0).to(slots.device)
        return hidden[torch.arange(slots.active, device=slots.device), last]

    def _places(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Request and position in the response (n, 2) of tokens in slots."""
        return np.stack([self.slots.request[rows], columns - self.slots.prompts[rows]], axis=1)

    def _notice_ended(self) -> None:
        slots = self.slots
        for slot in np.flatnonzero(slots.finished() & ~self.done[: slots.active]).tolist():
            response = slots.response(slot)
            self.responses[int(slots.request[slot])] = response
            slots.lengths[slot] = slots.prompts[slot] + len(response.tokens)
            self.done[slot] = True

    def _release(self) -> None:
        """Let go of rows that have ended and that both models have seen."""
        slots = self.slots
        seen = np.minimum(*(model.seen for model in self.models))
        free = np.flatnonzero((self.done & (seen >= slots.lengths - 1))[: slots.active])
        sources, targets = slots.release(free)
        for model in self.models:
            model.move(sources, targets)
        self.done[targets] = self.done[sources]
        self.done[slots.active :] = False
