"""Rows of the filter as prompts: one for each learnt answer, which then stands alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from minillm.data.encoding import LearntTurn


def prompts_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each learnt answer.

    Args:
        rows: Rows of a part, with the fields of `minillm.data.examples.SCHEMA`.

    Returns:
        Columns row, category, place, prompt_ids (all that stands before the answer), response_ids and response (its
        text). The place tells apart random streams: (row) for the last answer of a row, (row, n) for the n-th before.
    """
    columns = ["row", "category", "place", "prompt_ids", "response_ids", "response"]
    found = []
    for row in rows.to_dict("records"):
        prompt, tokens, turns = row["prompt_ids"], row["response_ids"], row["turns"]
        for left, turn in zip(reversed(range(len(turns))), turns, strict=True):
            place = (row["row"], left) if left else (row["row"],)
            before, answer = np.concatenate([prompt, tokens[: turn["start"]]]), tokens[turn["start"] : turn["end"]]
            found.append((row["row"], row["category"], place, before, answer, turn["text"]))
    return pd.DataFrame(found, columns=columns)


def answered(prompts: pd.DataFrame, responses: Sequence[Sequence[int]], texts: Sequence[str]) -> pd.DataFrame:
    """Return prompts of `prompts_of` with other responses, as rows like those of the filter."""
    turns = [[LearntTurn(0, len(tokens), text)._asdict()] for tokens, text in zip(responses, texts, strict=True)]
    kept = prompts[["row", "category", "prompt_ids"]]
    return kept.assign(response_ids=list(responses), turns=turns)


def learnt_ranges(turns: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Return the half-open ranges of a row's tokens behind its prompt that are learnt."""
    return [(turn["start"], turn["end"]) for turn in turns]
