"""From an instruction to the prompt's text and tokens, the same in training, rollouts and evaluation."""

import re
from collections.abc import Sequence
from typing import Any

from minillm.config import Template
from minillm.errors import StageError
from minillm.stages import EncodedPrompts, Questions

PLACEHOLDER = re.compile(r"\{(instruction|context)\}")


def render(template: Template, instruction: str, context: str) -> str:
    """The prompt of an instruction; the response follows directly (method.md §6).

    Braces in the instruction or context are text, never placeholders.

    Args:
        template: With and without context.
        instruction: What is asked.
        context: What it is asked about; empty or blank means none.
    """
    values = {"instruction": instruction, "context": context}
    text = template.with_context if context.strip() else template.without_context
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, after the BOS that the tokenizer puts before a text of its own accord (LLaMA, OPT).

    The reference code leaves BOS out everywhere; models pretrained with it are worse for that, so here it stays.
    """
    if not prompts:
        return []
    start = opening_tokens(tokenizer)
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    return [[*start, *ids] for ids in encoded]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of responses or plain text, without BOS or EOS.

    Encoded apart from the prompt, so that a prompt has the same tokens in training as in generation. The name of a
    special token in a text (`</s>` is also HTML) is encoded as the characters it is written with.
    """
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def fit_prompts(
    what: str, prompts: Sequence[list[int]], settings: EncodedPrompts | Questions, opening: Sequence[int]
) -> tuple[list[list[int]], int]:
    """Prompts within the limit, and how many had their beginning cut off to fit.

    Args:
        what: Whose they are, for the message, e.g. benchmark sni.
        prompts: Token ids.
        settings: Limit, and what happens to longer prompts.
        opening: Tokens that every prompt begins with (BOS, where the tokenizer adds it) and keeps when cut.

    Raises:
        StageError: If one is longer and `long_prompts` is refuse.
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
    return [prompt if len(prompt) <= limit else [*opening, *prompt[-rest:]] for prompt in prompts], len(longer)


def opening_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer adds before a text: usually nothing, or BOS."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []
