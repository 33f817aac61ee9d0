"""Sampling from one model with continuous batching: a response that ends makes room for the next prompt.

One uniform number decides each token, and every response has its own stream of them. So the other rows of a batch, and
the moment at which a row joined it, change nothing but floating-point rounding.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.generation.cache import CachedModel
from minillm.generation.drawing import Decoding, Draw, draw, greedy
from minillm.generation.slots import Request, Response, Slots
from minillm.models.passes import in_step

PLAIN = Decoding()
NO_SLOTS = np.empty(0, dtype=np.int64)

REFILL_SHARE = 1 / 8
"""Share of the slots that must be free before new prompts are run: makes prompt passes fewer and larger."""
HOST_STEPS, DEVICE_STEPS = 1, 8
"""Steps between checks for ended rows, on the CPU and on a device, where each check waits for the device."""


def steps_between_looks(device: torch.device) -> int:
    """Return the number of steps between checks for ended rows; tokens drawn after an end are thrown away."""
    return HOST_STEPS if device.type == "cpu" else DEVICE_STEPS


@dataclass(frozen=True)
class Sampler:
    """A model and the rules to decode it by."""

    model: PreTrainedModel
    ends: tuple[int, ...]
    """Tokens that end a response."""
    vocabulary: int
    """Entries of the tokenizer; logits beyond are padding and never sampled."""
    decoding: Decoding = PLAIN
    batch_size: int = 64
    """Rows at once."""

    def sample(self, requests: Sequence[Request], report: Callable[[int], None] = lambda done: None) -> list[Response]:
        """Sample a response to every request.

        Args:
            requests: Requests in any order; long prompts are run first, so that prompts run together are alike.
            report: Called with the number of finished requests whenever some have finished.

        Returns:
            Responses in the order of the requests.
        """
        responses: dict[int, Response] = {}
        with in_step(self.model):
            for slots, done in self._steps(requests) if requests else ():
                if len(done):
                    responses |= {int(slots.request[slot]): slots.response(slot) for slot in done.tolist()}
                    report(len(responses))
        return [responses[i] for i in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Response]:
        """Sample one response and yield it after each of its tokens, the last time whole."""
        for slots, _ in self._steps([request]):
            response = slots.response(0)
            yield response
            if response.finished:  # on a device, some steps would follow before the next check
                return

    @torch.no_grad()
    def _steps(self, requests: Sequence[Request]) -> Iterator[tuple[Slots, np.ndarray]]:
        """Draw a token for every row at a time, until all requests have had their turn.

        Yields:
            After each step the rows, and the slots of those found to have ended, (e,), which are free at the next step.
        """
        queue = deque(sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt), -requests[i].max_tokens)))
        device = next(self.model.parameters()).device
        slots = Slots(requests, min(self.batch_size, len(requests)), self.ends, device)
        cached = CachedModel(self.model, self.vocabulary, slots.capacity, slots.columns)
        look_every = steps_between_looks(device)
        for step in itertools.count(1):
            hidden = []
            if slots.active:  # a row lacks at most the token it drew last: k = 1
                hidden.append(cached.run(slots.tokens, slots.lengths, 0, slots.active)[0][:, -1])  # (active, H)
            free = slots.capacity - slots.active
            if queue and free >= max(1, int(REFILL_SHARE * slots.capacity)):
                hidden.append(self._admit(cached, slots, [queue.popleft() for _ in range(min(free, len(queue)))]))
            # New rows stand behind the others, so hidden states and slots are in one order.
            going = (slots.lengths < slots.limits)[: slots.active]  # (active,)
            slots.append(self._draw(torch.cat(hidden), cached, slots), going)
            looks = step % look_every == 0 or not going.any()  # a check waits for the device
            done = np.flatnonzero(slots.finished()) if looks else NO_SLOTS
            yield slots, done
            if len(done):
                cached.move(*slots.release(done))
            if not (queue or slots.active):
                return

    def _admit(self, cached: CachedModel, slots: Slots, numbers: list[int]) -> Tensor:
        """Admit requests and run their prompts; return the hidden states that predict their first tokens, (rows, H)."""
        first = slots.active
        slots.admit(numbers)
        cached.forget(first, len(numbers))
        hidden, _ = cached.run(slots.tokens, slots.lengths, first, len(numbers))  # (rows, longest prompt, H)
        last = torch.from_numpy(slots.prompts[first : slots.active] - 1).to(hidden.device)  # (rows,)
        return hidden[torch.arange(len(numbers), device=hidden.device), last]  # (rows, H)

    def _draw(self, hidden: Tensor, cached: CachedModel, slots: Slots) -> Draw:
        logits = self.decoding.warp(cached.head.logits(hidden), slots.sequence)  # (active, V)
        return greedy(logits) if self.decoding.strategy == "greedy" else draw(logits, slots.uniforms())
