"""Choose the answers shown side by side: to the prompts where a method gains and loses most, and to one not picked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from minillm.evaluation.responses import read_responses, read_rows
from minillm.reporting.comparison import MEAN, Comparison
from minillm.reporting.markdown import SHOWN_CHARACTERS
from minillm.words import number


def rival(comparison: Comparison) -> str | None:
    """Return the method shown beside the compared one: the best other student, or the teacher if there is no other."""
    others = [role for role in comparison.roles if role != comparison.compared]
    students = [role for role in others if not (comparison.taught and role == comparison.roles[0])]
    return max(students or others, key=lambda role: comparison.score(role, MEAN)["mean"], default=None)


def answers(inputs: Mapping[str, Path], benchmark: str, comparison: Comparison) -> list[dict[str, Any]]:
    """Return the shown prompts of a benchmark, with reason, references and each method's answer of the first seed."""
    prompts = read_rows(inputs["benchmarks"], benchmark)
    scores = {role: _scores(inputs[f"score/{role}"], benchmark) for role in comparison.roles}
    means = {role: of.groupby("index")["score"].mean() for role, of in scores.items()}
    reasons = _reasons(means, comparison)
    shown = [{**prompts[index], "why": why, "answers": {}} for index, why in reasons.items()]
    for role, table in comparison.tables.items():
        seed = table["seeds"][0]
        texts = read_responses(inputs[f"responses/{role}"], benchmark)
        of_seed = scores[role].query("seed == @seed").set_index("index")["score"].to_dict()
        for prompt in shown:
            index = prompt["index"]
            prompt["answers"][role] = {"text": texts[index, seed], "score": number(100 * of_seed[index])}
    return shown


def choice_words(comparison: Comparison) -> str:
    """Explain how the prompts were chosen."""
    seed = comparison.tables[comparison.roles[0]]["seeds"][0]
    other = rival(comparison)
    chosen = (
        f"For each benchmark, the prompts on which {comparison.compared} gains and loses most against {other}, by the "
        "mean over seeds, and the one in the middle, which is not picked"
        if other
        else "The prompt in the middle of each benchmark, which is not picked"
    )
    return f"{chosen}; answers of seed {seed}. Texts longer than {SHOWN_CHARACTERS} characters are cut here."


def _reasons(means: Mapping[str, Any], comparison: Comparison) -> dict[int, str]:
    """Return the reason why each prompt is shown, by its index."""
    scored = sorted(map(int, means[comparison.compared].index))
    middle = {scored[(len(scored) - 1) // 2]: "in the middle, not picked"}
    other = rival(comparison)
    if other is None:
        return middle
    gains = (100 * (means[comparison.compared] - means[other])).to_dict()
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    picked = {
        int(index): f"{comparison.compared} {verb} most against {other}: {number(gains[index], signed=True)}"
        for index, verb in ((best, "gains"), (worst, "loses"))
        if (gains[index] > 0 if verb == "gains" else gains[index] < 0)
    }
    return picked | {index: why for index, why in middle.items() if index not in picked}


def _scores(folder: Path, benchmark: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "scores.parquet").query("benchmark == @benchmark")
