"""Tiny models, rows and tokenizer of the cases, and the exact gradients by plain autograd; only torch, transformers."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

END, PAD = 0, 1
"""Token ids that end a response, and that fill a batch unless a case says otherwise."""
LETTERS = "abcdefghijkl"
"""Words by token id. None begins another, since a tokenizer finds its special tokens within words too."""
ARCHITECTURES = {
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
"""Rotary positions, of which only differences count, and learnt absolute ones."""


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt and of the response to train on."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


def text(tokens: Sequence[int]) -> str:
    """Write tokens as the text that the tokenizer turns into them."""
    return " ".join(LETTERS[token] for token in tokens)


@dataclass(frozen=True)
class Pair:
    """Student, teacher, and what their tokenizer knows: words of one letter."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    vocabulary: int
    pad: int = PAD

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer. Its chat template puts the messages' words one after another."""
        words = Tokenizer(WordLevel({letter: i for i, letter in enumerate(LETTERS[: self.vocabulary])}, unk_token="a"))
        words.pre_tokenizer = WhitespaceSplit()
        special = {"eos_token": LETTERS[END], "pad_token": LETTERS[self.pad]}
        made = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)
        made.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
        return made


def model(seed: int, kind: str = "llama", entries: int = 12) -> PreTrainedModel:
    """Return a random model without dropout, whose distributions are far from uniform."""
    fields = {"vocab_size": entries, "bos_token_id": None, "eos_token_id": END, "pad_token_id": None}
    wide = {"initializer_range": 0.5, "max_position_embeddings": 64}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **ARCHITECTURES[kind], **fields, **wide)
    return AutoModelForCausalLM.from_config(config).eval()


def pair(kind: str = "llama", entries: int = 12, pad: int = PAD) -> Pair:
    """Return a student and a teacher of other weights, of the same size."""
    return Pair(model(1, kind, entries), model(2, kind, entries).requires_grad_(False), entries, pad)


def log_probs(of: PreTrainedModel, row: Row) -> Tensor:
    """Return the log-probabilities (T, V) of every next token of a response, alone and unpadded."""
    tokens = torch.tensor([[*row.prompt, *row.response]])
    return of(tokens, use_cache=False).logits[0, len(row.prompt) - 1 : -1].log_softmax(dim=-1)


def generalized_jsd(student_log: Tensor, teacher_log: Tensor, beta: float) -> Tensor:
    """GKD's divergence (arXiv 2306.13649, eq. 1) of (T, V), summed: forward KL at β = 0, reverse KL at β = 1."""
    if beta in (0, 1):
        first, second = (teacher_log, student_log) if beta == 0 else (student_log, teacher_log)
        return (first.exp() * (first - second)).sum()
    mixture_log = (beta * teacher_log.exp() + (1 - beta) * student_log.exp()).log()
    return (
        beta * (teacher_log.exp() * (teacher_log - mixture_log)).sum()
        + (1 - beta) * (student_log.exp() * (student_log - mixture_log)).sum()
    )


def every_response(entries: int, limit: int) -> list[tuple[int, ...]]:
    """Return all responses up to `limit` tokens, ended by the end token or cut."""
    return [
        tokens
        for length in range(1, limit + 1)
        for tokens in itertools.product(range(entries), repeat=length)
        if END not in tokens[:-1] and (tokens[-1] == END or length == limit)
    ]


def exact_gradient(
    of: Pair, rows: Sequence[Row], beta: float | None, teacher_mix: float
) -> tuple[list[float], dict[str, Tensor]]:
    """Return the probability with which each response is sampled, and the gradient of the objective by name.

    Args:
        of: The models.
        rows: One prompt with every response there is.
        beta: Of the objective Σ_y q(y)·Σ_t JSD_β at token t, in which q(y) is a constant (GKD, eq. 2); None for
            KL[q ‖ p] of whole responses, differentiated through q(y) too (MiniLLM, eq. 1).
        teacher_mix: Share of the teacher in the sampling of each token.
    """
    total, probabilities = torch.zeros(()), []
    for row in rows:
        student_log, teacher_log = log_probs(of.student, row), log_probs(of.teacher, row)
        chosen = torch.tensor(row.response)[:, None]
        student, teacher = (side.gather(1, chosen)[:, 0] for side in (student_log, teacher_log))  # (T,)
        mixed = teacher_mix * teacher.exp() + (1 - teacher_mix) * student.exp().detach()
        probabilities.append(float(mixed.prod()))
        likelihood = student.sum().exp()
        if beta is None:
            total = total + likelihood * (student - teacher).sum()
        else:
            total = total + likelihood.detach() * generalized_jsd(student_log, teacher_log, beta)
    named = dict(of.student.named_parameters())
    gradient = torch.autograd.grad(total, list(named.values()))
    return probabilities, dict(zip(named, gradient, strict=True))
