"""Token ids of texts that no template is around, and what a template makes of an example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Encoded:
    """An example as it is trained on."""

    prompt: str
    prompt_ids: list[int]
    response_ids: list[int]
    """Tokens that follow the prompt; the last ends the response."""
    notes: tuple[str, ...] = ()
    """Why an answer that was asked for is not learnt, or is tokenised apart from its prompt."""


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of responses or plain text, without BOS or EOS.

    They are encoded separately from the prompt, so that a prompt has the same tokens in training as in generation. The
    name of a special token in a text (`</s>` is also HTML) is encoded as plain characters.
    """
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def opening_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer adds before a text: usually none, or BOS."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []
