"""Log-probabilities and losses over the vocabulary, from hidden states: logits of all tokens never exist at once.

What comes out is per token; gradients come out as those of hidden states and head. How the vocabulary is summed in
chunks and blocks is behind one door, `minillm.objectives.fused_head`; the formula is in method.md §2.
"""

import torch
from torch import Tensor

from minillm.models.output_head import OutputHead
from minillm.objectives.divergences import Functional
from minillm.objectives.fused_head import fused_head_loss, token_logits
from minillm.objectives.sparse import SparseTeacher
from minillm.objectives.terms import PerTokenLoss, Teacher, TokenTerms


@torch.no_grad()
def token_log_probs(
    hidden: Tensor, head: OutputHead, tokens: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each token and its log-normaliser, (N,) each, without gradient.

    Args:
        hidden: (N, H), last hidden states that predict the tokens.
        head: Output head of the same model.
        tokens: (N,).
        temperature: Divides the logits.
    """
    chosen, _, log_normalizer = token_logits(hidden, head, tokens, temperature)
    return chosen - log_normalizer, log_normalizer


@torch.no_grad()
def likeliest_log_probs(hidden: Tensor, head: OutputHead, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each token and of the likeliest one in its place, (N,) each, without gradient.

    The two are equal, bit by bit, where the token is the likeliest. Arguments as in `token_log_probs`.
    """
    chosen, highest, log_normalizer = token_logits(hidden, head, tokens, temperature=1.0)
    return chosen - log_normalizer, highest - log_normalizer


def head_loss(
    hidden: Tensor,
    head: OutputHead,
    tokens: Tensor,
    loss: PerTokenLoss,
    functional: Functional | None = None,
    teacher: Teacher | SparseTeacher | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, TokenTerms]:
    """Sum over tokens any loss made of log q(y_t) and a divergence D_t, with gradient to hidden states and head.

    The two partial derivatives of the loss per token, c = ∂/∂log q and w = ∂/∂D, are all that the gradient of the
    logits needs: ∂/∂z = w·h + c·onehot(y) − q·(w·Σh + c) with h of `minillm.objectives.divergences`.

    Args:
        hidden: (N, H), the student's last hidden states.
        head: Student's output head.
        tokens: y, (N,).
        loss: From the terms of a slice of the tokens to a loss for each of them.
        functional: D; None where the loss needs log q(y_t) alone, and for a sparse teacher, where D is forward KL.
        teacher: Teacher at the same tokens; None where D needs none.
        temperature: Divides the logits of both models; probabilities of a sparse teacher are taken as they are.

    Returns:
        The loss, a scalar, and the terms of all tokens, (N,) each.
    """
    total, log_prob, divergence = fused_head_loss(hidden, head, tokens, loss, functional, teacher, temperature)
    return total, TokenTerms(log_prob, divergence)
