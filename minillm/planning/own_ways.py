"""Chat template and end tokens that a model brings itself, against those that the rows are written in."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer

from minillm.config import Template
from minillm.data.chat import ChatTemplate
from minillm.data.prompts import template_of
from minillm.errors import StageError
from minillm.models.shared_tokenizer import SharedTokenizer, named_end_tokens
from minillm.planning.outlook_figures import OwnWays
from minillm.preparation.tokenizer_checks import has_tokenizer

ASKED = ("Name three colours.", "")
"""Question that both templates write."""


def own_ways(directory: Path, run: SharedTokenizer, template: Template, row_ends: Collection[int]) -> OwnWays | None:
    """Compare what a model brings with the rows of a run.

    Args:
        directory: The model's folder.
        run: Tokenizer of the run.
        template: Template of the run.
        row_ends: Tokens that end rows.

    Returns:
        None if the model brings no tokenizer.
    """
    if not has_tokenizer(directory):
        return None
    own = AutoTokenizer.from_pretrained(directory)
    named = {*named_end_tokens(directory), own.eos_token_id}
    missing = [str(run.tokenizer.convert_ids_to_tokens(end)) for end in sorted(row_ends) if end not in named]
    return OwnWays(template=_own_template(own, run, template), missing_ends=tuple(missing))


def _own_template(
    own: Any, run: SharedTokenizer, template: Template
) -> Literal["same", "different", "absent", "unused"]:
    used = template_of(run.tokenizer, template, run.ends)
    if not isinstance(used, ChatTemplate):
        return "unused" if own.chat_template else "same"
    if not own.chat_template:
        return "absent"
    try:
        found = ChatTemplate(own, run.ends, used.system, used.variables).prompts([ASKED])
    except StageError:
        return "different"
    return "same" if found == used.prompts([ASKED]) else "different"
