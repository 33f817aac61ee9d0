"""Prompts as text and as tokens, made the same way for training, rollouts and evaluation."""

from collections.abc import Sequence
from typing import Any

from minillm.config import Template
from minillm.data.chat import ChatTemplate
from minillm.data.text_template import TextTemplate
from minillm.errors import StageError
from minillm.stages.reading import EncodedPrompts, Questions


def template_of(tokenizer: Any, template: Template, ends: Sequence[int] = ()) -> TextTemplate | ChatTemplate:
    """Return what makes prompts of questions, and examples of rows.

    Without a choice, it is the tokenizer's own template where it has one, and else the paper's text.

    Args:
        tokenizer: Tokenizer with an EOS token.
        template: The choice.
        ends: Tokens that end a response; the tokenizer's EOS if none is given.

    Raises:
        StageError: The tokenizer's own template is asked for, or given what only it reads, and it has none.
    """
    needing = [*(["chat"] if template.chat else []), *template.of_chat]
    if needing and not tokenizer.chat_template:
        raise StageError(
            f"data.template has {' and '.join(f'`{name}`' for name in needing)}, but the tokenizer has no chat "
            "template: take a model or a `tokenizer.from` that has one, or leave data.template out for the paper's text"
        )
    chat = template.chat if template.chat is not None else not template.has_text and bool(tokenizer.chat_template)
    if not chat:
        return TextTemplate(tokenizer, template)
    return ChatTemplate(tokenizer, ends or [tokenizer.eos_token_id], template.system, template.variables)


def fit_prompts(
    what: str, prompts: Sequence[list[int]], settings: EncodedPrompts | Questions, opening: Sequence[int] | None
) -> tuple[list[list[int]], int]:
    """Cut the beginning off prompts above the limit; return all prompts and the number that were cut.

    Args:
        what: Set that the prompts belong to, for the message, e.g. benchmark sni.
        prompts: Token ids.
        settings: The limit, and the treatment of longer prompts.
        opening: Tokens that every prompt begins with (BOS, if the tokenizer adds it) and keeps when cut; None if it
            begins with a chat template's own words, which the models need.

    Raises:
        StageError: A prompt is longer, and `long_prompts` is refuse or its beginning cannot be cut.
    """
    limit = settings.max_prompt_tokens
    longer = [i for i, prompt in enumerate(prompts) if len(prompt) > limit]
    if not longer:
        return list(prompts), 0
    if opening is None or settings.long_prompts == "refuse":
        cut = "or leave the set out; evaluation.long_prompts: cut would drop what the chat template begins with"
        if opening is not None:
            cut = "or set evaluation.long_prompts: cut to drop their beginning"
        raise StageError(
            f"{what}: {len(longer)} prompts are longer than {limit} tokens, the first is number "
            f"{longer[0]} with {len(prompts[longer[0]])}; raise evaluation.max_prompt_tokens, {cut}"
        )
    rest = limit - len(opening)
    fitting = [prompt if len(prompt) <= limit else [*opening, *prompt[len(prompt) - rest :]] for prompt in prompts]
    return fitting, len(longer)
