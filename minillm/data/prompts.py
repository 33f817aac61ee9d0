"""Prompts as text and as tokens, made the same way for training, rollouts and evaluation."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.config import Template
from minillm.errors import StageError
from minillm.stages.reading import EncodedPrompts, Questions

PLACEHOLDER = re.compile(r"\{(instruction|context)\}")


def render(template: Template, instruction: str, context: str) -> str:
    """Return the prompt of an instruction; the response follows directly (method.md §6).

    Braces in the instruction or context are text, never placeholders.

    Args:
        template: Templates with and without context.
        instruction: The instruction.
        context: Its context; empty or blank means none.
    """
    return _fill(_variant(template, context), instruction, context)


def encode_prompts(tokenizer: Any, template: Template, asked: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Return token ids of the prompts of (instruction, context) pairs.

    They begin with the BOS that the tokenizer adds by default (LLaMA, OPT), and only one if the template has it too.
    The reference code leaves BOS out everywhere, which hurts models pretrained with it.

    In the template, the name of a special token is that token. In an instruction or context it is encoded as plain
    characters, as in `encode_texts`: nobody ends a prompt by asking about `</s>`.
    """
    if not asked:
        return []
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    marks = [name for name in special if name in template.with_context or name in template.without_context]
    texts = [render(template, *question) for question in asked]
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=not marks)["input_ids"]
    for number, question in enumerate(asked):
        if marks and any(name in text for text in question for name in special):
            encoded[number] = _encode_between(marks, tokenizer, template, *question)
    start = opening_tokens(tokenizer)
    return [ids if ids[: len(start)] == start else [*start, *ids] for ids in encoded]


def _encode_between(marks: Sequence[str], tokenizer: Any, template: Template, *question: str) -> list[int]:
    """Encode a prompt whose question names special tokens: only those of the template become special tokens."""
    longest_first = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    ids: list[int] = []
    for piece in re.split(f"({longest_first})", _variant(template, question[1])):
        own = [tokenizer.convert_tokens_to_ids(piece)] if piece in marks else None
        ids += own or encode_texts(tokenizer, [_fill(piece, *question)])[0]
    return ids


def _variant(template: Template, context: str) -> str:
    return template.with_context if context.strip() else template.without_context


def _fill(text: str, instruction: str, context: str) -> str:
    values = {"instruction": instruction, "context": context}
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of responses or plain text, without BOS or EOS.

    They are encoded separately from the prompt, so that a prompt has the same tokens in training as in generation. The
    name of a special token in a text (`</s>` is also HTML) is encoded as plain characters.
    """
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def fit_prompts(
    what: str, prompts: Sequence[list[int]], settings: EncodedPrompts | Questions, opening: Sequence[int]
) -> tuple[list[list[int]], int]:
    """Cut the beginning off prompts above the limit; return all prompts and the number that were cut.

    Args:
        what: Set that the prompts belong to, for the message, e.g. benchmark sni.
        prompts: Token ids.
        settings: The limit, and the treatment of longer prompts.
        opening: Tokens that every prompt begins with (BOS, if the tokenizer adds it) and keeps when cut.

    Raises:
        StageError: A prompt is longer and `long_prompts` is refuse.
    """
    limit = settings.max_prompt_tokens
    rest = limit - len(opening)
    longer = [i for i, prompt in enumerate(prompts) if len(prompt) > limit]
    if longer and settings.long_prompts == "refuse":
        raise StageError(
            f"{what}: {len(longer)} prompts are longer than {limit} tokens, the first is number "
            f"{longer[0]} with {len(prompts[longer[0]])}; raise evaluation.max_prompt_tokens, or set "
            "evaluation.long_prompts: cut to drop their beginning"
        )
    fitting = [prompt if len(prompt) <= limit else [*opening, *prompt[len(prompt) - rest :]] for prompt in prompts]
    return fitting, len(longer)


def opening_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that the tokenizer adds before a text: usually none, or BOS."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def load_prompts(directory: Path) -> dict[str, list[list[int]]]:
    """Load the token ids of every benchmark's prompts, in the order of its rows."""
    return {
        path.stem: [ids.tolist() for ids in pd.read_parquet(path)["prompt_ids"]]
        for path in sorted(directory.glob("*.parquet"))
    }
