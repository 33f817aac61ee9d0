"""Token ids of texts that no template is around, of stored prompts, and of an example in a template."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd


class LearntTurn(NamedTuple):
    """A learnt answer: its tokens as a half-open range of those that follow the prompt, and its text."""

    start: int
    end: int
    """Behind the token that ends the answer, which is learnt too."""
    text: str


class Apart(NamedTuple):
    """An answer that its row's tokens do not hold as it is asked for; it has a prompt of its own."""

    left: int
    """Number of answers behind it; it sets apart the random streams of a row's answers."""
    prompt_ids: list[int]
    response_ids: list[int]
    text: str


@dataclass(frozen=True)
class Encoded:
    """An example as it is trained on."""

    prompt: str
    """Text before the first learnt answer."""
    prompt_ids: list[int]
    response_ids: list[int]
    """Tokens that follow the prompt; the last ends the last answer."""
    turns: tuple[LearntTurn, ...]
    """Learnt answers; what stands between them is only read."""
    apart: tuple[Apart, ...] = ()
    """Answers that are only asked for."""
    notes: tuple[str, ...] = ()
    """Why an answer that was asked for is not among the turns, or is tokenised apart from its prompt."""

    @property
    def learnt(self) -> int:
        """Tokens that are learnt."""
        return sum(turn.end - turn.start for turn in self.turns)


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


def special_names(tokenizer: Any) -> list[str]:
    """Return the names of the tokenizer's special tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def load_prompts(directory: Path) -> dict[str, list[list[int]]]:
    """Load the token ids of every benchmark's prompts, in the order of its rows."""
    return {
        path.stem: [ids.tolist() for ids in pd.read_parquet(path)["prompt_ids"]]
        for path in sorted(directory.glob("*.parquet"))
    }
