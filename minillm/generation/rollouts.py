"""Rollouts: responses sampled from p̃ = α·p + (1−α)·q.

For each token a coin of probability α chooses the model that draws it; a token so drawn has exactly the law p̃
(method.md §2). A model therefore runs only where its coin falls, and then over all tokens since it last ran at once.
There is one coin for each position, shared by all responses of a round. Each response still has exactly the law p̃; two
responses of one round depend on each other through their coins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from minillm.generation.cache import CachedModel
from minillm.generation.drawing import Decoding, draw
from minillm.generation.sampling import Sampler, steps_between_looks
from minillm.generation.slots import Request, Response, Slots
from minillm.models.passes import in_step
from minillm.streams import Name, generator


def drawn_by_teacher(coins: Name, tokens: int, teacher_mix: float) -> NDArray[np.bool_]:
    """Return a round's coins: whether the teacher draws the tokens at each position of a response, (tokens,)."""
    return generator(coins).random(tokens) < teacher_mix


@dataclass(frozen=True)
class RolloutSampler:
    """Student and teacher, and the rules to sample responses from their mixture."""

    student: PreTrainedModel
    teacher: PreTrainedModel | None
    """None if it has no share."""
    ends: tuple[int, ...]
    """Tokens that end a response, whichever model draws them."""
    vocabulary: int
    """Entries of the tokenizer."""
    teacher_mix: float
    """α, the teacher's share."""
    temperature: float
    """Sampling temperature of both models."""
    batch_size: int
    """Most rows at once."""

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], coins: Name) -> list[Response]:
        """Sample a response to every request.

        Args:
            requests: Requests of one round, or this process's share of them.
            coins: Name of the random stream of the round's coins.

        Returns:
            Responses in the order of the requests, with each token's log-probability under the model that drew it.
        """
        if self.teacher_mix == 0.0:
            decoding = Decoding(temperature=self.temperature)
            return Sampler(self.student, self.ends, self.vocabulary, decoding, self.batch_size).sample(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].max_tokens))
        longest = max(r.max_tokens for r in requests)
        from_teacher = drawn_by_teacher(coins, longest, self.teacher_mix)
        responses: dict[int, Response] = {}
        assert self.teacher is not None
        with in_step(self.student, self.teacher):
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                batch = _MixedBatch(self, [requests[i] for i in chosen], from_teacher)
                responses |= dict(zip(chosen, batch.sample(), strict=True))
        return [responses[i] for i in range(len(requests))]


class _MixedBatch:
    """One batch of responses from p̃. Its rows start together, so that one coin serves every row."""

    def __init__(self, sampler: RolloutSampler, requests: Sequence[Request], from_teacher: np.ndarray) -> None:
        self.sampler, self.from_teacher = sampler, from_teacher
        device = next(sampler.student.parameters()).device
        self.slots = Slots(requests, len(requests), sampler.ends, device)
        self.slots.admit(range(len(requests)))
        assert sampler.teacher is not None
        self.models = [
            CachedModel(model, sampler.vocabulary, len(requests), self.slots.columns)
            for model in (sampler.student, sampler.teacher)
        ]
        self.responses: dict[int, Response] = {}

    def sample(self) -> list[Response]:
        """Draw token after token until every row has ended."""
        slots, look_every = self.slots, steps_between_looks(self.slots.device)
        step = 0
        while slots.active:
            going = (slots.lengths < slots.limits)[: slots.active]  # (active,)
            slots.append(draw(self._logits(int(self.from_teacher[step])), slots.uniforms()), going)
            step += 1
            # The next step needs a row that goes on; if all are at their limit, they must be released now.
            if step % look_every == 0 or (slots.lengths >= slots.limits)[: slots.active].all():
                self._release_ended()
        return [self.responses[i] for i in range(len(self.responses))]

    def _logits(self, which: int) -> Tensor:
        """Run one model (0 student, 1 teacher) on the tokens it has not seen; return logits of the next, (rows, V)."""
        slots, model = self.slots, self.models[which]
        # k counts the tokens since this model last ran; at its first turn, the prompt too.
        hidden, columns = model.run(slots.tokens, slots.lengths, 0, slots.active)  # (rows, k, H), (rows, k)
        # A row at its limit may have no unseen token; its logits are not used.
        last = torch.from_numpy((columns >= 0).sum(axis=1) - 1).clamp(min=0).to(slots.device)  # (rows,)
        after = hidden[torch.arange(slots.active, device=slots.device), last]  # (rows, H)
        return model.head.logits(after, self.sampler.temperature)

    def _release_ended(self) -> None:
        """Keep the responses of ended rows and free their slots."""
        slots = self.slots
        ended = np.flatnonzero(slots.finished())  # (e,), ascending
        self.responses |= {int(slots.request[slot]): slots.response(slot) for slot in ended.tolist()}
        sources, targets = slots.release(ended)
        for model in self.models:  # both caches follow, whichever model ran last
            model.move(sources, targets)
