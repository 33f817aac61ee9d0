"""A model small enough that every response can be enumerated: logits are a smooth function of the prefix."""

import itertools

import torch
from torch import Tensor, nn

from minillm.models.output_head import OutputHead

EOS = 0
VOCABULARY = 3
LIMIT = 3


class PrefixModel(nn.Module):
    """Model q(y_t | y_<t): a small recurrent net in float64 that ignores prompts."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(VOCABULARY + 1, 4, generator=generator, dtype=torch.float64))
        self.mix = nn.Parameter(torch.randn(4, 4, generator=generator, dtype=torch.float64))
        self.head = nn.Parameter(torch.randn(4, VOCABULARY, generator=generator, dtype=torch.float64))

    def logits(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) that predict each of tokens (B, T)."""
        return self.hidden(tokens) @ self.head

    def output_head(self) -> OutputHead:
        """Return the head in the form that the losses take."""
        return OutputHead(self.head.t(), None, VOCABULARY)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states (B, T, 4), before the head."""
        state = self.embed[torch.full((len(tokens),), VOCABULARY)]
        out = []
        for t in range(tokens.shape[1]):
            out.append(torch.tanh(state))
            state = torch.tanh(state @ self.mix) + self.embed[tokens[:, t]]
        return torch.stack(out, dim=1)


def every_response(limit: int = LIMIT) -> tuple[Tensor, Tensor]:
    """Return tokens and mask (N, limit) of all responses up to `limit` tokens, some ended by EOS and some cut."""
    rows = []
    for length in range(1, limit + 1):
        for body in itertools.product(range(VOCABULARY), repeat=length):
            ends_here = body[-1] == EOS or length == limit
            if EOS not in body[:-1] and ends_here:
                rows.append(body)
    tokens = torch.tensor([[*row, *[EOS] * (limit - len(row))] for row in rows])
    mask = torch.tensor([[t < len(row) for t in range(limit)] for row in rows])
    return tokens, mask
