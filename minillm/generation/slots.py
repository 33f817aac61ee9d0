"""Rows in generation: their tokens, limits and random numbers, apart from the models' caches (see cache).

S is the number of slots, C the tokens of the longest row (prompt and response).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minillm.generation.drawing import Draw
from minillm.streams import Name, generator


@dataclass(frozen=True)
class Request:
    """One response to sample."""

    prompt: Sequence[int]
    """Token ids."""
    max_tokens: int
    """Longest response, in tokens, end token included; at least 1."""
    stream: Name
    """Name of the random stream that decides its tokens."""


@dataclass(frozen=True)
class Response:
    """A sampled response of T tokens."""

    tokens: list[int]
    """Token ids, the end token included if one was drawn."""
    finished: bool
    """True if it ended with an end token, False if it was cut at the length limit."""
    log_prob: Tensor
    """Log-probability of each token under the distribution it was drawn from, (T,), on the CPU."""


class Slots:
    """A fixed number of slots for rows; the first `active` of them are in use.

    The host counts lengths itself, so no step waits for the device.
    """

    def __init__(self, requests: Sequence[Request], slots: int, ends: Sequence[int], device: torch.device) -> None:
        """Allocate slots for the longest request.

        Args:
            requests: All requests that will ever be admitted.
            slots: Most rows at once.
            ends: Tokens that end a response; any one of them does.
            device: Device of the tokens.
        """
        self.requests, self.ends, self.device = requests, frozenset(ends), device
        self._end_tokens = torch.tensor(list(ends), dtype=torch.long, device=device)
        self.columns = max(len(r.prompt) + r.max_tokens for r in requests)
        self.capacity = slots
        self.active = 0
        self.tokens = torch.zeros(slots, self.columns, dtype=torch.long, device=device)  # (S, C), prompt then response
        self.ended = torch.zeros(slots, dtype=torch.bool, device=device)  # (S,), an end token has been drawn
        # float64 keeps each log-probability as it was drawn, whichever precision the logits had.
        self.log_probs = torch.zeros(slots, self.columns, dtype=torch.float64, device=device)  # (S, C)
        # (S, longest response): drawn when a row is admitted, so a row's numbers depend on its stream alone.
        self._uniforms = torch.zeros(slots, max(r.max_tokens for r in requests), dtype=torch.float64, device=device)
        self.request = np.zeros(slots, dtype=np.int64)  # (S,)
        """Number of the request in each slot."""
        self.prompts = np.ones(slots, dtype=np.int64)  # (S,)
        """Tokens of each prompt."""
        self.lengths = np.ones(slots, dtype=np.int64)  # (S,)
        """Tokens of each prompt and response so far."""
        self.limits = np.ones(slots, dtype=np.int64)  # (S,)
        """Most tokens of each prompt and response."""

    def admit(self, numbers: Sequence[int]) -> None:
        """Give the next free slots to requests, by their numbers."""
        chosen = slice(self.active, self.active + len(numbers))
        tokens = np.zeros((len(numbers), self.columns), dtype=np.int64)  # (n, C), the n rows admitted
        uniforms = np.zeros((len(numbers), self._uniforms.shape[1]))  # (n, longest response)
        for row, number in enumerate(numbers):
            request = self.requests[number]
            tokens[row, : len(request.prompt)] = request.prompt
            uniforms[row, : request.max_tokens] = generator(request.stream).random(request.max_tokens)
        self.tokens[chosen] = torch.from_numpy(tokens).to(self.device)
        self._uniforms[chosen] = torch.from_numpy(uniforms).to(self.device)
        self.ended[chosen] = False
        self.request[chosen] = numbers
        self.prompts[chosen] = self.lengths[chosen] = [len(self.requests[number].prompt) for number in numbers]
        self.limits[chosen] = self.prompts[chosen] + [self.requests[number].max_tokens for number in numbers]
        self.active += len(numbers)

    def uniforms(self) -> Tensor:
        """Return the random number that decides each active row's next token, (active,)."""
        # Place in the response. A row at its limit draws too, and its draw is thrown away: any number will do.
        position = np.minimum(self.lengths, self.limits - 1) - self.prompts  # (S,)
        chosen = torch.from_numpy(position[: self.active, None]).to(self.device)  # (active, 1)
        return self._uniforms[: self.active].gather(1, chosen).squeeze(1)

    def sequence(self, slot: int) -> Tensor:
        """Return a row's prompt and response so far, (length,)."""
        return self.tokens[slot, : self.lengths[slot]]

    def append(self, drawn: Draw, going: np.ndarray) -> None:
        """Append the tokens drawn for all active rows to those that are still going, (active,) bool."""
        rows = np.flatnonzero(going)  # (g,), the rows that are going
        row, column = torch.from_numpy(rows).to(self.device), torch.from_numpy(self.lengths[rows]).to(self.device)
        token = drawn.token[row]  # (g,)
        self.tokens[row, column] = token
        self.log_probs[row, column] = drawn.log_prob[row].to(self.log_probs.dtype)
        self.ended[row] |= torch.isin(token, self._end_tokens)
        self.lengths[rows] += 1

    def finished(self) -> np.ndarray:
        """Return a mask (active,) of the rows at their end; waits for the device."""
        return self.ended[: self.active].cpu().numpy() | (self.lengths >= self.limits)[: self.active]

    def response(self, slot: int) -> Response:
        """Return the response in a slot, up to and including its first end token."""
        columns = slice(self.prompts[slot], self.lengths[slot])  # may reach beyond the end token: looks are rare
        tokens = self.tokens[slot, columns].tolist()
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        if end is not None:
            tokens = tokens[: end + 1]
        kept = self.log_probs[slot, columns][: len(tokens)].to("cpu", copy=True)  # the slot will be another row's
        return Response(tokens, end is not None, kept)

    def release(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Free slots and move the last rows into the gaps.

        Returns:
            Source and target slots of the moves, (m,) each, which caches must follow.
        """
        left = self.active - len(slots)
        # Rows behind the first `left` slots move into the holes among these; there are as many of one as of the other.
        targets = slots[slots < left]  # (m,)
        sources = np.setdiff1d(np.arange(left, self.active), slots)  # (m,)
        self.active = left
        if len(sources):
            from_, to = torch.from_numpy(sources).to(self.device), torch.from_numpy(targets).to(self.device)
            for values in (self.tokens, self.ended, self.log_probs, self._uniforms):
                values[to] = values[from_]
            for counts in (self.request, self.prompts, self.lengths, self.limits):
                counts[targets] = counts[sources]
        return sources, targets
