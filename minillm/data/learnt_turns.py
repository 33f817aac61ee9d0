"""Rows of the filter as prompts: one for each learnt answer, which then stands alone."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from minillm.data.encoding import LearntTurn


def prompts_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each answer that is learnt or stands apart.

    Args:
        rows: Rows of a part, with the fields of `minillm.data.examples.SCHEMA`; those without `apart` have no such
            answer.

    Returns:
        Columns row, category, place, prompt_ids (all that stands before the answer), response_ids and response (its
        text). The place tells apart random streams: (row) for the last answer of a row, (row, n) for the n-th before.
    """
    columns = ["row", "category", "place", "prompt_ids", "response_ids", "response"]
    found = []
    for row in rows.to_dict("records"):
        prompt, tokens, turns = row["prompt_ids"], row["response_ids"], row["turns"]
        apart = {of["left"]: of for of in row.get("apart", ())}
        free = (left for left in itertools.count() if left not in apart)
        inside = dict(zip(free, reversed(turns), strict=False))
        for left in sorted([*apart, *inside], reverse=True):
            place = (row["row"], left) if left else (row["row"],)
            if of := apart.get(left):
                before, answer, text = of["prompt_ids"], of["response_ids"], of["text"]
            else:
                start, end, text = (inside[left][name] for name in ("start", "end", "text"))
                before, answer = np.concatenate([prompt, tokens[:start]]), tokens[start:end]
            found.append((row["row"], row["category"], place, before, answer, text))
    return pd.DataFrame(found, columns=columns)


def answered(prompts: pd.DataFrame, responses: Sequence[Sequence[int]], texts: Sequence[str]) -> pd.DataFrame:
    """Return prompts of `prompts_of` with other responses, as rows like those of the filter."""
    turns = [[LearntTurn(0, len(tokens), text)._asdict()] for tokens, text in zip(responses, texts, strict=True)]
    kept = prompts[["row", "category", "prompt_ids"]]
    return kept.assign(response_ids=list(responses), turns=turns)


def learnt_ranges(turns: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return the half-open ranges of a row's tokens behind its prompt that are learnt."""
    return [(turn["start"], turn["end"]) for turn in turns]
