"""Which architectures of the installed transformers serve: `python -m docs.architectures` writes architectures.md."""

import re
from collections import defaultdict
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minillm.errors import StageError
from minillm.preparation.architecture_check import require_faithful
from minillm.preparation.model_checks import build_skeleton, inspect_model
from minillm.preparation.small_likeness import with_short_windows

PAGE = Path(__file__).with_suffix(".md")
LENGTH = 64
"""Tokens of the longest row tried."""
WINDOW = 24
"""Most tokens of an attention window or chunk, so that rows are longer than any."""
ENTRIES = 300_000
"""More than any special token of an architecture's own configuration."""
NAME = "model"
SERVES = "**serves**"
IN_SHORT = (
    ("encoder–decoder", "is an encoder–decoder model"),
    ("it keeps (.*) of a row", r"keeps \1, not keys and values alone"),
    ("cannot be tried", "cannot be made small, to be tried"),
    ("of its kind, (.*?) differs from", r"\1 differs"),
    ("of its kind, (.*?) fails", r"\1 fails"),
    ("transformers cannot", "transformers cannot build it from its default configuration"),
)
"""Patterns of refusals, and their words on the page."""

TEXT = f"""# Architectures

What `prepare` says of each of the {{count}} causal language models of transformers {{version}}, in its own default
configuration, made small, with rows of {LENGTH} tokens and attention windows of at most {WINDOW}; made by
`python -m docs.architectures`. Every way in which we run a model must give the log-probabilities of its plain forward
pass: a row alone, without cache or padding. A real model is tried in its own configuration and with the run's lengths.

| verdict | architectures |
|---|---|
{{rows}}
"""


def verdict(model_type: str) -> str | None:
    """Why an architecture is refused in its default configuration; None if it serves."""
    try:
        config, skeleton = build_skeleton(NAME, {"model_type": model_type}, ENTRIES)
        inspect_model(NAME, config, skeleton, entries=1)
        require_faithful(NAME, with_short_windows(config, WINDOW), skeleton, LENGTH)
    except StageError as error:
        return str(error)
    return None


def page() -> str:
    """The page, from trying every architecture."""
    of = defaultdict(list)
    for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        of[in_short(verdict(name))].append(name)
    rows = [f"| {short} | {', '.join(names)} |" for short, names in sorted(of.items(), key=lambda row: -len(row[1]))]
    count = len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return TEXT.format(version=transformers.__version__, count=count, rows="\n".join(rows))


def in_short(reason: str | None) -> str:
    """A refusal in words, without names, numbers and a library's own, so that those of one reason are alike."""
    if reason is None:
        return SERVES
    words = next(found.expand(short) for pattern, short in IN_SHORT if (found := re.search(pattern, reason)))
    serves = re.search(r"it serves with rows of at most \d+ tokens", reason)
    return f"{words}; {serves[0]}" if serves else words


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
