"""The output head apart from the body of a model, so that losses can take the vocabulary in chunks of tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minillm.errors import StageError
from minillm.models.batches import Batch

CPU_ROWS = 2048
"""Entries of the vocabulary multiplied at once on a CPU, so that the product of a few hundred tokens stays in cache."""


@dataclass(frozen=True)
class OutputHead:
    """What turns the last hidden states into logits over the tokenizer's entries."""

    weight: Tensor
    """(R, H); R ≥ `vocabulary` where the embedding is padded."""
    bias: Tensor | None
    """(R,)."""
    vocabulary: int
    """V, entries of the tokenizer; rows beyond never enter a softmax."""
    soft_cap: float | None = None
    """c of c·tanh(logits/c) (Gemma 2)."""

    @torch.no_grad()
    def logits(self, hidden: Tensor, temperature: float = 1.0, out: Tensor | None = None) -> Tensor:
        """Logits over the temperature, in float32 at least and without gradient.

        Args:
            hidden: (N, H).
            temperature: Divides the logits.
            out: (V, N) to be written over, so that no memory is asked for.

        Returns:
            (N, V), laid out in memory as (V, N): with few tokens and many entries, processors multiply faster that
            way around, and what follows does not care.
        """
        weight = self.weight[: self.vocabulary]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        if out is None:
            out = torch.empty(len(weight), len(hidden), dtype=wide, device=hidden.device)
        rows = CPU_ROWS if hidden.device.type == "cpu" else len(weight)
        for part, product in zip(weight.detach().split(rows), out.split(rows), strict=True):
            if hidden.dtype == wide:
                torch.mm(part, hidden.t(), out=product)
            else:
                product.copy_(part @ hidden.t())
        logits = out
        if self.bias is not None:
            logits = logits.add_(self.bias[: self.vocabulary, None])
        if self.soft_cap is not None:
            logits = logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return (logits if temperature == 1.0 else logits.div_(temperature)).t()


HeadLosses = Callable[[Tensor, OutputHead], dict[str, Tensor]]
"""From hidden states (N, H), which predict N tokens, and the head to named losses."""


def output_head(model: PreTrainedModel, vocabulary: int) -> OutputHead:
    """The head of a causal language model, as a view of its weights.

    Args:
        model: Any whose logits are a linear map of its last hidden states, soft-capped or not (`require_plain_head`).
        vocabulary: Entries of the tokenizer.
    """
    layer = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return OutputHead(layer.weight, getattr(layer, "bias", None), vocabulary, cap)  # type: ignore[arg-type]


def response_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Last hidden states that predict the real response tokens of a batch, row after row.

    Returns:
        (N, H), N the number of real response tokens: prompts and padding go no further than the body.
    """
    positions = (batch.mask.cumsum(dim=1) - 1).clamp(min=0)
    output = model.base_model(
        input_ids=batch.tokens, attention_mask=batch.mask.long(), position_ids=positions, use_cache=False
    )
    return output.last_hidden_state[:, batch.prompt_width - 1 : -1][batch.response_mask]


@torch.no_grad()
def require_plain_head(model: PreTrainedModel) -> None:
    """Check on a few tokens that the model's logits are what its head makes of its hidden states.

    Raises:
        StageError: If the model does more to its logits than is known here.
    """
    rows = model.config.get_text_config().vocab_size
    tokens = torch.arange(min(4, rows), device=next(model.parameters()).device)[None]
    training = model.training
    model.eval()
    want = model(input_ids=tokens, use_cache=False).logits[0].float()
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    got = output_head(model, want.shape[-1]).logits(hidden).float()
    model.train(training)
    if got.shape != want.shape or not torch.allclose(got, want, rtol=1e-2, atol=1e-2 * float(want.abs().max())):
        raise StageError(
            f"{model.config.model_type} ({rows} embedding rows) does something to its logits that "
            "minillm/models/output_head.py does not know; add it to OutputHead, or take another architecture"
        )


class HeadedModel(nn.Module):
    """A model that computes its losses within its own forward pass.

    DeepSpeed wraps this module: under ZeRO-3 the head's weights are whole only while the module that uses them runs.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary

    def forward(self, batch: Batch, losses: HeadLosses) -> dict[str, Tensor]:
        """`losses` of the hidden states that predict the batch's response tokens."""
        return losses(response_hidden(self.model, batch), output_head(self.model, self.vocabulary))
