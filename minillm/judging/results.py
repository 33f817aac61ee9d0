"""Turn ratings into figures: Σ model / Σ reference with its interval, and how far the judge can be trusted.

The unit is a pair, a model's answer and the reference, rated in both orders. A pair rated in a single order would be
biased and is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minillm.evaluation.uncertainty import Estimate, difference_of_ratios, ratio_of_sums
from minillm.judging.questions import ORDERS

WHO = ["model", "reference"]


def table(role: str, ratings: pd.DataFrame) -> dict[str, Any]:
    """Return the figures of one method by benchmark, and their mean.

    Args:
        role: Name of the method.
        ratings: A row for each question: benchmark, index, seed, order, sample, and model and reference, missing
            if it was not answered. Every benchmark must have a pair rated in both orders.
    """
    rows = {str(name): _row(part) for name, part in ratings.groupby("benchmark", sort=False)}
    return {"role": role, "benchmarks": rows, "mean": _ratio(list(prompt_ratings(ratings).values()))}


def prompt_ratings(ratings: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the mean ratings of each prompt by benchmark: columns model and reference, indexed by the prompt."""
    return {str(name): _prompts(part) for name, part in ratings.groupby("benchmark", sort=False)}


def difference(prompts: Mapping[str, pd.DataFrame], others: Mapping[str, pd.DataFrame]) -> Estimate | None:
    """Estimate how far one method's ratio is above another's, in points, on shared prompts; None without any."""
    shared = {name: of.index.intersection(others[name].index) for name, of in prompts.items()}
    if any(index.empty for index in shared.values()):
        return None
    return difference_of_ratios(
        [_percent(prompts[name].loc[index]) for name, index in shared.items()],
        [_percent(others[name].loc[index]) for name, index in shared.items()],
    )


def trust(ratings: pd.DataFrame) -> dict[str, float]:
    """Measure how much the ratings of one benchmark depend on the order in which the two answers are shown.

    Returns:
        order_agreement: percentage of pairs for which the judge prefers the same one in both orders (a tie counts as a
        preference); first_advantage: points by which it rates an answer higher for being shown first.
    """
    pairs = _pairs(ratings)
    model_first, reference_first = (
        (pairs["model", order] - pairs["reference", order]).to_numpy(dtype=float) for order in ORDERS
    )
    same = np.sign(model_first) == np.sign(reference_first)
    return {
        "order_agreement": 100 * float(same.mean()),
        "first_advantage": float((model_first - reference_first).mean() / 2),
    }


def _row(ratings: pd.DataFrame) -> dict[str, Any]:
    prompts = _prompts(ratings)
    counts = {
        "prompts": len(prompts),
        "all_prompts": len(set(ratings["index"])),
        "questions": len(ratings),
        "unanswered": len(ratings) - len(ratings.dropna()),
    }
    means = {f"{who}_mean": float(mean) for who, mean in zip(WHO, _columns(prompts).mean(axis=1), strict=True)}
    return _ratio([prompts]) | means | counts | trust(ratings)


def _ratio(prompts: Sequence[pd.DataFrame]) -> dict[str, Any]:
    found = ratio_of_sums([_percent(of) for of in prompts])
    return {"ratio": found.value, "interval": [found.low, found.high]}


def _prompts(ratings: pd.DataFrame) -> pd.DataFrame:
    pairs = _pairs(ratings)
    return pd.DataFrame({who: pairs[who].mean(axis=1) for who in WHO}).pivot_table(WHO, "index")


def _pairs(ratings: pd.DataFrame) -> pd.DataFrame:
    """Average over samples; columns (model or reference, order), indexed by prompt and seed."""
    return ratings.pivot_table(WHO, ["index", "seed"], "order", dropna=False).dropna()


def _columns(prompts: pd.DataFrame) -> NDArray[np.float64]:
    return prompts[WHO].to_numpy(dtype=float).T


def _percent(prompts: pd.DataFrame) -> NDArray[np.float64]:
    """Return part and whole (2, n) of a ratio in percent."""
    return _columns(prompts) * [[100.0], [1.0]]
