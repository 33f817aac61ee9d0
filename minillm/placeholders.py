"""Placeholders `{name}` in prompts; all other braces are text."""

import re
from collections.abc import Mapping

PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


def placeholders(text: str) -> list[str]:
    """Return the names of the placeholders in a text."""
    return PLACEHOLDER.findall(text)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in place of the placeholders; braces in values are text."""
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)
