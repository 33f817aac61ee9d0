"""Rollouts: responses sampled from p̃ = α·p + (1−α)·q.

A coin of probability α says which model the next token is drawn from, which has exactly the law p̃ (method.md §2). A
model therefore runs only where its coin falls, over all tokens since it last ran at once. The coins belong to the
position in the response and are the same for all responses of a round: each response has exactly the law p̃, while two
responses of a round are dependent through their coins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.generation.cache import CachedModel
from minillm.generation.drawing import Decoding, draw
from minillm.generation.sampling import Sampler, steps_between_looks
from minillm.generation.slots import Request, Response, Slots
from minillm.streams import Name, generator


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

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], coins: Name) -> list[Response]:
        """Sample every request, in the order of the requests.

        Args:
            requests: Of one round, or this process's share of it.
            coins: Names the random stream of the round's coins.

        Returns:
            Responses, with the log-probability of each token under the model that drew it.
        """
        if self.teacher_mix == 0.0:
            decoding = Decoding(temperature=self.temperature)
            return Sampler(self.student, self.ends, self.vocabulary, decoding, self.batch_size).sample(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].max_tokens))
        longest = max(r.max_tokens for r in requests)
        from_teacher = generator(coins).random(longest) < self.teacher_mix  # (longest,), a coin for each position
        responses: dict[int, Response] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            batch = _MixedBatch(self, [requests[i] for i in chosen], from_teacher)
            responses |= dict(zip(chosen, batch.sample(), strict=True))
        return [responses[i] for i in range(len(requests))]


class _MixedBatch:
    """One batch of responses from p̃. Its rows start together, so that one coin is every row's."""

    def __init__(self, sampler: RolloutSampler, requests: Sequence[Request], from_teacher: np.ndarray) -> None:
        self.sampler, self.from_teacher = sampler, from_teacher
        device = next(sampler.student.parameters()).device
        self.slots = Slots(requests, len(requests), sampler.ends, device)
        self.slots.admit(range(len(requests)))
        self.models = [
            CachedModel(model, sampler.vocabulary, len(requests), self.slots.columns)
            for model in (sampler.student, sampler.teacher)
        ]
        self.responses: dict[int, Response] = {}

    def sample(self) -> list[Response]:
        """Draw token after token until all rows have ended."""
        slots, look_every = self.slots, steps_between_looks(self.slots.device)
        step = 0
        while slots.active:
            going = (slots.lengths < slots.limits)[: slots.active]  # (active,)
            slots.append(draw(self._logits(int(self.from_teacher[step])), slots.uniforms()), going)
            step += 1
            # Another step needs a row that goes on: where all are at their limit, nothing is left to be run.
            if step % look_every == 0 or (slots.lengths >= slots.limits)[: slots.active].all():
                self._release_ended()
        return [self.responses[i] for i in range(len(self.responses))]

    def _logits(self, which: int) -> Tensor:
        """What one model says (rows, V) of every row's next token, after it has seen those that it lacked."""
        slots, model = self.slots, self.models[which]
        # k counts the tokens since this model last ran; at its first turn, the prompt too.
        hidden, columns = model.run(slots.tokens, slots.lengths, 0, slots.active)  # (rows, k, H), (rows, k)
        # A row at its limit may lack nothing; what is said of it is not used.
        last = torch.from_numpy((columns >= 0).sum(axis=1) - 1).clamp(min=0).to(slots.device)  # (rows,)
        after = hidden[torch.arange(slots.active, device=slots.device), last]  # (rows, H)
        return model.head.logits(after, self.sampler.temperature)

    def _release_ended(self) -> None:
        """Keep the responses of rows at their end and let go of them."""
        slots = self.slots
        ended = np.flatnonzero(slots.finished())  # (e,), ascending
        self.responses |= {int(slots.request[slot]): slots.response(slot) for slot in ended.tolist()}
        sources, targets = slots.release(ended)
        for model in self.models:  # both caches follow, whichever model ran last
            model.move(sources, targets)
