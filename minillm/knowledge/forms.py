"""What is kept of a teacher at each token: made of its hidden states, and turned back into what a loss takes."""

import torch
from torch import Tensor

from minillm.config import Top
from minillm.models.output_head import OutputHead
from minillm.objectives.sparse import SparseTeacher
from minillm.stages.training import StoreKnowledge

Kept = dict[str, Tensor]
"""Tensors of N tokens by name, with a row for each token or, for those of `PER_ENTRY`, for each entry kept at it."""
PER_ENTRY = ("entries", "log_probs", "draws")
CHUNK_TOKENS = 64
"""Tokens whose log-probabilities exist at once: 39 MB in float32 with the 152 K entries of Qwen2.5."""
FEW_ENTRIES = 1 << 16
"""Largest vocabulary whose entries have two bytes; they have four in a larger one."""
SCALARS = 12
"""Bytes at a token beside its entries: their number, log p of the text's token, and tail or entropy."""


def bytes_per_token(stage: StoreKnowledge, vocabulary: int, width: int) -> int:
    """Return the bytes that a token takes: the most for draws, of which some fall together; a guess for `top.mass`.

    Args:
        stage: What is kept.
        vocabulary: V, entries of the tokenizer.
        width: Width of the teacher's hidden states.
    """
    if stage.form == "hidden":
        return width * (4 if stage.precision == "float32" else 2)
    if stage.sampled is not None:
        return stage.sampled.draws * (entry_type(vocabulary).itemsize + 1) + SCALARS
    assert stage.top is not None
    guessed = Top() if stage.top.mass is not None else stage.top
    return top_bytes(guessed.entries(vocabulary), vocabulary)


def top_bytes(entries: int, vocabulary: int) -> int:
    """Return the bytes that a token takes with so many of its likeliest entries."""
    return entries * (entry_type(vocabulary).itemsize + 2) + SCALARS


def entry_type(vocabulary: int) -> torch.dtype:
    """Return the type that holds any entry of a vocabulary."""
    return torch.uint16 if vocabulary <= FEW_ENTRIES else torch.int32


@torch.no_grad()
def keep(stage: StoreKnowledge, hidden: Tensor, head: OutputHead, tokens: Tensor, uniform: Tensor | None) -> Kept:
    """Keep what the settings ask for of the teacher at N tokens, on the CPU.

    Args:
        stage: What is kept.
        hidden: (N, H), last hidden states that predict the tokens.
        head: The teacher's output head.
        tokens: y, the text's own tokens (N,).
        uniform: (N, draws) float64 in [0, 1), for the form that draws.
    """
    if stage.form == "hidden":
        return {"hidden": hidden.cpu()}
    parts = []
    for start in range(0, len(tokens), CHUNK_TOKENS):
        part = slice(start, start + CHUNK_TOKENS)
        log_probs = head.logits(hidden[part]).contiguous().log_softmax(dim=1)  # (n, V)
        own = log_probs.gather(1, tokens[part, None]).squeeze(1)  # (n,)
        if stage.top is not None:
            kept = _top(log_probs, stage.top)
        else:
            assert uniform is not None
            kept = _drawn(log_probs, uniform[part])
        kept["entries"] = kept["entries"].to(entry_type(head.vocabulary))
        parts.append({name: values.cpu() for name, values in kept.items()} | {"token_log_prob": own.float().cpu()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _top(log_probs: Tensor, top: Top) -> Kept:
    """Keep the likeliest entries of (n, V), the likeliest first, and the mass of all others."""
    vocabulary = log_probs.shape[1]
    likeliest, entries = log_probs.topk(top.entries(vocabulary), dim=1)  # (n, K) each
    probability = likeliest.exp()
    counts = torch.full_like(entries[:, 0], entries.shape[1])  # (n,)
    if top.mass is not None:
        counts = ((probability.cumsum(dim=1) < top.mass).sum(dim=1) + 1).clamp(max=entries.shape[1])
    inside = _first(counts, entries.shape[1])  # (n, K)
    tail = (1 - (probability * inside).sum(dim=1)).clamp(min=0).masked_fill(counts == vocabulary, 0)  # (n,)
    return {
        "counts": counts.int(),
        "entries": entries[inside],
        "log_probs": likeliest[inside].clamp(min=torch.finfo(torch.float16).min).half(),
        "tail": tail.float(),
    }


def _drawn(log_probs: Tensor, uniform: Tensor) -> Kept:
    """Draw entries of (n, V) with replacement by inverting the cumulative distribution; keep each with its count."""
    probability = log_probs.double().exp()
    cumulative = probability.cumsum(dim=1)  # (n, V)
    total = cumulative[:, -1:]
    # Rounding may put a threshold at the total; below it, an entry that has a probability is always found.
    threshold = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))  # (n, draws)
    drawn = torch.searchsorted(cumulative, threshold, right=True)  # (n, draws)
    tokens, vocabulary = log_probs.shape
    numbered = drawn + vocabulary * torch.arange(tokens, device=drawn.device)[:, None]
    different, draws = numbered.unique(return_counts=True)  # sorted by token, then by entry
    return {
        "counts": torch.bincount(different // vocabulary, minlength=tokens).int(),
        "entries": different % vocabulary,
        "draws": draws.to(torch.uint8),
        "entropy": torch.special.entr(log_probs.exp()).sum(dim=1).float(),
    }


def recall(kept: Kept) -> SparseTeacher:
    """Return the teacher at the N tokens of which `top` or `sampled` were kept, on their device."""
    counts = kept["counts"].long()
    inside = _first(counts, int(counts.max()))  # (N, K)

    def padded(values: Tensor) -> Tensor:
        return torch.zeros(inside.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)

    entries = padded(kept["entries"].long())
    probability, tail, entropy = padded(_weights(kept)), kept.get("tail"), kept.get("entropy")
    if tail is None:  # counts of draws
        tail = torch.zeros_like(probability[:, 0])
    # Log-probabilities were rounded, so those that were kept add up to 1 again only now.
    whole = probability.sum(dim=1) + tail
    probability, tail = probability / whole[:, None], tail / whole
    if entropy is None:
        entropy = torch.special.entr(probability).sum(dim=1) + torch.special.entr(tail)
    entries = torch.where(inside, entries, entries[:, :1])
    return SparseTeacher(entries, inside, probability, tail, entropy, kept["token_log_prob"])


def _weights(kept: Kept) -> Tensor:
    return kept["log_probs"].float().exp() if "log_probs" in kept else kept["draws"].float()


def _first(counts: Tensor, width: int) -> Tensor:
    """Mask (N, width) of the first places of each row, as many as its count."""
    return torch.arange(width, device=counts.device) < counts[:, None]
