"""Facts about a model that follow from its configuration alone."""

from minillm.config import Strict

UNKNOWN_POSITIONS = 2048
"""Tokens that lm-evaluation-harness takes a model to see where its configuration does not say."""


class ModelFacts(Strict):
    """One model, as models.json records it."""

    model_type: str
    parameters: int
    """Weights, tied ones counted once."""
    body_parameters: int
    """Weights that each token is multiplied with before the output head: without embeddings and head."""
    matrix_edges: int
    """Rows plus columns of all matrices among these; an adapter of rank r has r weights for each."""
    layers: int
    width: int
    """H, entries of a hidden state."""
    cache_width: int
    """Entries of keys and values that a layer keeps for each token; the largest if layers differ."""
    embedding_rows: int
    tokenizer_entries: int
    positions: int | None
    """Longest input, in tokens; None without such a limit."""
