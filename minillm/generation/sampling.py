"""Sampling responses from one model or from a mixture of models, with key–value caches.

One uniform number decides each token through the inverse of the cumulative distribution, and every response has its
own stream of them, so what is in a batch beside it changes nothing but floating-point rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, NoRepeatNGramLogitsProcessor, PreTrainedModel

from minillm.models.batches import make_batch
from minillm.objectives.divergences import log_softmax


@dataclass(frozen=True)
class Request:
    """One response to sample."""

    prompt: Sequence[int]
    """Token ids."""
    max_tokens: int
    """Length limit of the response, its EOS included; at least 1."""
    stream: tuple[int, ...]
    """Names the random stream: seed, prompt, sample number."""


@dataclass(frozen=True)
class Response:
    """A sampled response."""

    tokens: list[int]
    """Token ids, with the EOS where it ended by itself."""
    finished: bool
    """Ended with EOS; otherwise cut at the length limit."""


@dataclass(frozen=True)
class Sampler:
    """Settings of a generation.

    Models and weights describe p̃ = Σ weight·softmax(logits/temperature): probabilities are mixed, not logits
    (method.md §2). One model of weight 1 is plain sampling.
    """

    models: Sequence[tuple[PreTrainedModel, float]]
    eos: int
    vocabulary: int
    """Entries of the tokenizer; logits beyond are padding and never sampled."""
    temperature: float = 1.0
    no_repeat_ngram: int | None = None
    batch_size: int = 64

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], report: Callable[[int], None] = lambda done: None) -> list[Response]:
        """Sample every request; responses come back in the order of the requests.

        Args:
            requests: Taken in batches of similar prompt length.
            report: Called with the number of finished requests after every batch.
        """
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].max_tokens))
        responses: dict[int, Response] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            tokens = self._sample_batch([requests[i] for i in chosen])
            for i, row in zip(chosen, tokens, strict=True):
                responses[i] = Response(row, finished=row[-1] == self.eos)
            report(len(responses))
        return [responses[i] for i in range(len(requests))]

    def _sample_batch(self, requests: Sequence[Request]) -> list[list[int]]:
        device = next(self.models[0][0].parameters()).device
        state = _State(requests, [model for model, _ in self.models], device)
        results: list[list[int]] = [[] for _ in requests]
        for t in range(max(r.max_tokens for r in requests)):
            token = _draw(self._probabilities(state), state.uniforms[:, t])
            ended = (token == self.eos) | (t + 1 >= state.limits)
            for row, value in zip(state.rows, token.tolist(), strict=True):
                results[row].append(value)
            going = (~ended).nonzero().squeeze(1)
            if not len(going):
                break
            state.append(token, going)
        return results

    def _probabilities(self, state: "_State") -> Tensor:
        """p̃ of the next token, (rows, V) in float64."""
        total: Tensor | float = 0.0
        for (model, weight), cache in zip(self.models, state.caches, strict=True):
            logits = state.next_logits(model, cache)[:, : self.vocabulary] / self.temperature
            if self.no_repeat_ngram is not None:
                logits = NoRepeatNGramLogitsProcessor(self.no_repeat_ngram)(state.tokens, logits)  # type: ignore[arg-type]
            total = total + weight * log_softmax(logits).double().exp()
        assert isinstance(total, Tensor)
        return total


class _State:
    """The rows of a batch that are still going: tokens so far, caches, limits and random numbers."""

    def __init__(self, requests: Sequence[Request], models: Sequence[PreTrainedModel], device: torch.device) -> None:
        batch = make_batch([r.prompt for r in requests], [[] for _ in requests]).to(device)
        self.tokens, self.mask = batch.tokens, batch.mask
        self.rows = list(range(len(requests)))
        self.caches = [DynamicCache(config=model.config) for model in models]
        self.limits = torch.tensor([r.max_tokens for r in requests], device=device)
        longest = max(r.max_tokens for r in requests)
        draws = [np.random.default_rng(r.stream).random(longest) for r in requests]
        self.uniforms = torch.from_numpy(np.stack(draws)).to(device)

    def next_logits(self, model: PreTrainedModel, cache: DynamicCache) -> Tensor:
        """Run the model over the tokens its cache has not seen; logits of the next one, (rows, vocabulary)."""
        seen = cache.get_seq_length()
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        output = model(
            input_ids=self.tokens[:, seen:],
            attention_mask=self.mask.long(),
            position_ids=positions[:, seen:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def append(self, token: Tensor, going: Tensor) -> None:
        """Add a token to every row, then drop the rows that have ended."""
        self.tokens = torch.cat([self.tokens, token[:, None]], dim=1)
        self.mask = torch.cat([self.mask, torch.ones_like(token[:, None], dtype=torch.bool)], dim=1)
        if len(going) == len(self.rows):
            return
        self.tokens, self.mask = self.tokens[going], self.mask[going]
        self.limits, self.uniforms = self.limits[going], self.uniforms[going]
        self.rows = [self.rows[i] for i in going.tolist()]
        for cache in self.caches:
            cache.batch_select_indices(going)


def _draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative distribution passes the uniform number.

    Args:
        probabilities: (rows, V), need not sum to exactly one.
        uniform: (rows,) in [0, 1).

    Returns:
        (rows,) token ids, never one of probability zero.
    """
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)
