"""The output head, apart from a model's body, so that losses can go over the vocabulary in chunks of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minillm.models.batches import Batch

if TYPE_CHECKING:  # a plan needs numbers of this module's users, and no model
    from transformers import PretrainedConfig, PreTrainedModel

CPU_BLOCK = 1 << 19
"""Logits made at once on a CPU: 2 MB in float32, which are still in its cache for the next operation."""


@dataclass(frozen=True)
class OutputHead:
    """The map from last hidden states (N, H) to logits (N, V) over the tokenizer's entries."""

    weight: Tensor
    """(R, H); R ≥ `vocabulary` where the embedding is padded."""
    bias: Tensor | None
    """(R,)."""
    vocabulary: int
    """V, entries of the tokenizer; rows beyond never enter a softmax."""
    soft_cap: float | None = None
    """c of c·tanh(logits/c) (Gemma 2)."""

    def blocks(self, tokens: int) -> list[slice]:
        """Divide the vocabulary into blocks for a number of tokens: small ones on a CPU, one on a device."""
        size = max(1, CPU_BLOCK // tokens) if self.weight.device.type == "cpu" else self.vocabulary
        return [slice(start, min(start + size, self.vocabulary)) for start in range(0, self.vocabulary, size)]

    @torch.no_grad()
    def block(self, hidden: Tensor, rows: slice, temperature: float, out: Tensor) -> Tensor:
        """Compute the logits of some entries, divided by the temperature, without gradient.

        Args:
            hidden: (N, H).
            rows: Slice of r entries of the vocabulary.
            temperature: Divides the logits.
            out: (r, N), in float32 at least, written over; entries first, since the product is faster that way around.

        Returns:
            (N, r), a view of `out`.
        """
        weight = self.weight.detach()[rows]  # (r, H)
        if hidden.dtype == out.dtype:
            torch.mm(weight, hidden.t(), out=out)
        else:
            out.copy_(weight @ hidden.t())  # a product in bfloat16, all that follows in float32
        if self.bias is not None:
            out.add_(self.bias.detach()[rows, None])
        if self.soft_cap is not None:
            out.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        if temperature != 1.0:
            out.div_(temperature)
        return out.t()

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Return logits (N, V) divided by the temperature, laid out in memory as (V, N), without gradient.

        Args:
            hidden: (N, H).
            temperature: Divides the logits.
        """
        wide = torch.promote_types(hidden.dtype, torch.float32)
        out = torch.empty(self.vocabulary, len(hidden), dtype=wide, device=hidden.device)  # (V, N)
        for rows in self.blocks(len(hidden)):
            self.block(hidden, rows, temperature, out[rows])
        return out.t()


HeadLosses = Callable[[Tensor, OutputHead], dict[str, Tensor]]
"""From the hidden states (N, H) that predict N tokens, and the head, to losses by name."""


def output_head(model: "PreTrainedModel", vocabulary: int) -> OutputHead:
    """Return the head of a causal language model, as a view of its weights.

    Args:
        model: Any model whose logits are a linear map of its last hidden states, soft-capped or not
            (`minillm.preparation.architecture_check`).
        vocabulary: Entries of the tokenizer.
    """
    layer = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return OutputHead(layer.weight, getattr(layer, "bias", None), vocabulary, cap)  # type: ignore[arg-type]


def last_hidden(model: "PreTrainedModel", **inputs: Any) -> Tensor:
    """Run a model's body; return the last hidden states (B, T, H), scaled by what the model multiplies its logits by.

    A factor of logits is one of hidden states, so that losses over the vocabulary need not know of it.
    """
    # Llama 4's text model names no body.
    body = model.base_model if model.base_model is not model else model.model
    hidden = body(**inputs).last_hidden_state
    factor = _logit_factor(model.config.get_text_config())
    return hidden if factor == 1.0 else hidden * factor


def _logit_factor(config: "PretrainedConfig") -> float:
    """Return the factor of the logits: Cohere multiplies by one, Granite and MiniCPM divide."""
    return (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)


def response_hidden(model: "PreTrainedModel", batch: Batch) -> Tensor:
    """Run a model's body; return the hidden states that predict the learnt response tokens, row after row.

    Returns:
        (N, H), N being the number of learnt response tokens: the head need not see what is only read, and padding.
    """
    # Positions count real tokens, so a prompt padded on the left starts at 0 as it would alone.
    positions = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, P + T)
    hidden = last_hidden(
        model, input_ids=batch.tokens, attention_mask=batch.mask.long(), position_ids=positions, use_cache=False
    )
    # A state predicts the next token: one column to the left of the response, (B, T, H), then its learnt tokens.
    return hidden[:, batch.prompt_width - 1 : -1][batch.response_mask]  # (N, H)


class HeadedModel(nn.Module):
    """A model that computes its losses within its own forward pass.

    DeepSpeed wraps this module: under ZeRO-3 the head's weights are whole only while the module that uses them runs.
    """

    def __init__(self, model: "PreTrainedModel", vocabulary: int) -> None:
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary

    def forward(self, batch: Batch, losses: HeadLosses) -> dict[str, Tensor]:
        """Return `losses` of the hidden states that predict the batch's response tokens."""
        return losses(response_hidden(self.model, batch), output_head(self.model, self.vocabulary))
