"""What is known of a model from its configuration alone."""

from minillm.config import Strict


class ModelFacts(Strict):
    """One model, as models.json records it."""

    model_type: str
    parameters: int
    """Weights, tied ones counted once."""
    body_parameters: int
    """Of these, what each token is multiplied with before the output head: neither embeddings nor the head."""
    matrix_edges: int
    """Rows and columns of all matrices among them, which an adapter has r weights for each of."""
    layers: int
    width: int
    """H, entries of a hidden state."""
    cache_width: int
    """Entries of keys and values that a layer keeps of each token, the largest where layers differ."""
    embedding_rows: int
    tokenizer_entries: int
    positions: int | None
    """Tokens it can see at most; None where it has no such limit."""
