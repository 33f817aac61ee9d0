"""Which architectures of the installed transformers serve: `python -m docs.architectures` writes architectures.md."""

import re
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from minillm.errors import StageError
from minillm.preparation.architecture_check import require_faithful
from minillm.preparation.model_checks import build_skeleton, inspect_model

PAGE = Path(__file__).with_suffix(".md")
LENGTH = 64
"""Tokens of the longest row tried: a window or a rescaled position beyond it does not show."""
ENTRIES = 300_000
"""More than any special token of an architecture's own configuration."""
NAME = "model"

TEXT = f"""# Architectures

What `prepare` says of every causal language model of transformers {{version}} in its own default configuration, with
rows of {LENGTH} tokens; made by `python -m docs.architectures`. A real model is tried in its own configuration and with
the run's lengths: one with windows, or with other kinds of layers, may serve here and be refused there.

{{count}} serve: {{serving}}.

| refused | why |
|---|---|
{{refused}}
"""


def verdict(model_type: str) -> str | None:
    """Why an architecture is refused in its default configuration; None if it serves."""
    try:
        config, skeleton = build_skeleton(NAME, {"model_type": model_type}, ENTRIES)
        inspect_model(NAME, config, skeleton, entries=1)
        require_faithful(NAME, config, skeleton, LENGTH)
    except StageError as error:
        return str(error)
    return None


def page() -> str:
    """The page, from trying every architecture."""
    verdicts = {name: verdict(name) for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    serving = [name for name, reason in verdicts.items() if reason is None]
    refused = [f"| {name} | {_short(reason)} |" for name, reason in verdicts.items() if reason is not None]
    return TEXT.format(
        version=transformers.__version__, count=len(serving), serving=", ".join(serving), refused="\n".join(refused)
    )


def _short(reason: str) -> str:
    reason = re.sub(r"^.*?(Tried on small random models of its kind, |: |cannot be tried )", "", reason, count=1)
    reason = re.sub(r"; (take|it serves).*$|-?\d\.?\d*e[+-]\d+ ", "", reason)
    return reason.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")[:160]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
