"""Comparison of what a regular expression finds in a response and in its references."""

from collections.abc import Sequence

from minillm.patterns import group_in


def regex_group(response: str, references: Sequence[str], pattern: str) -> float:
    """Return 1 if a pattern's group holds the same in a response as in any reference, or else 0.

    The first match counts. A reference in which there is none is itself what the group must hold. Case and white space
    do not count; punctuation does, since −3 is not 3.

    Args:
        response: The text to score; 0 if the pattern is not found in it.
        references: One or more right answers.
        pattern: Regular expression with one group.

    Raises:
        ValueError: `references` is empty.
        StageError: A search takes too long.
    """
    found = group_in(pattern, response)
    return max(float(found is not None and _folded(found) == wanted(each, pattern)) for each in references)


def wanted(reference: str, pattern: str) -> str:
    """Return what the group must hold."""
    found = group_in(pattern, reference)
    return _folded(reference if found is None else found)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
