"""Answers as they are compared: two that mean the same are written alike, and no others."""

import re
import string
from decimal import Decimal

THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
CURRENCY = re.compile(r"[$€£]")
NUMBER = re.compile(r"[-+]?\d*\.?\d+")
MARKS = re.compile(
    rf"""
    ( (?<=\d)[{re.escape(string.punctuation)}]+(?=\d)            # between digits: 1.5, 3:30, 2^3
    | (?<![\w.])\.(?=\d)                                         # .5
    | \s*(?<![^\W\d_]{{2}})(?:[-+/^<>=,]\s*)+(?=\.?\d)           # before a number: −5, x - 3; not Covid-19
    | (?<=\d)\s*[-+/^<>=]\s*(?=\w)                               # after one: 3 - x
    )
    | [{re.escape(string.punctuation)}]
    """,
    re.VERBOSE,
)
"""Marks of punctuation; those that belong to a number are a group."""


def canonical(answer: str) -> str:
    """Return an answer as it is compared: a number by its value, words without case and punctuation.

    Numbers among words keep their signs, points and operators: −5 apples are not 5 apples, nor is x - 3 x + 3.
    """
    text = CURRENCY.sub("", answer.strip().replace("\N{MINUS SIGN}", "-").lower())
    words = MARKS.sub(lambda found: "".join((found[1] or "").split()), THOUSANDS.sub("", text))
    told = " ".join(words.split())
    if NUMBER.fullmatch(told):
        return format(Decimal(told).normalize() + 0, "f")  # −0 + 0 is 0
    return told or answer.strip()
