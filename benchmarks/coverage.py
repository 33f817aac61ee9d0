"""Coverage of intervals, and false alarms between equal methods: `python -m benchmarks.coverage` (a minute)."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minillm.evaluation.reliability import BINS, binned, calibration_error, calibration_interval
from minillm.evaluation.uncertainty import estimate, sign_flip_test

SAMPLES = 2000
ECE_SAMPLES = 400

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

SCORES: dict[str, tuple[Draw, float]] = {
    "few good answers": (lambda draw, size: 100 * draw.beta(1.2, 4, size), 100 * 1.2 / 5.2),
    "many zeros": (lambda draw, size: np.where(draw.random(size) < 0.4, 0, 100 * draw.beta(2, 3, size)), 24.0),
    "all or little": (lambda draw, size: np.where(draw.random(size) < 0.25, 100, 100 * draw.beta(1, 6, size)), 250 / 7),
}
"""Laws of scores like Rouge-L's on long references, on short ones, and if a quarter is exactly right; their means."""
RIGHT: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "calibrated": lambda sure: sure,
    "0.03 too sure": lambda sure: sure - 0.03,
    "too sure the surer it is": lambda sure: 0.25 + 0.7 * (sure - 0.25),
    "too sure at the top": lambda sure: np.where(sure > 0.9, sure - 0.15, sure),
}
"""Functions that map a model's confidence to its share of right answers."""


def score_coverage(name: str, prompts: int) -> float:
    """Return the share of intervals that hold the mean, in percent, among samples that have an interval."""
    draw, mean = SCORES[name]
    found = [estimate([sample]) for sample in draw_samples(draw, prompts)]
    held = [of.low <= mean <= of.high for of in found if of.low is not None and of.high is not None]
    return 100 * float(np.mean(held))


def false_alarms(name: str, prompts: int) -> float:
    """Return the share of p < 0.05, in percent, if two methods answer equally well."""
    draw, _ = SCORES[name]
    differences = draw_samples(draw, prompts) - draw_samples(draw, prompts, seed=1)
    return 100 * float(np.mean([sign_flip_test([of]) < 0.05 for of in differences]))


def calibration_coverage(name: str, prompts: int) -> float:
    """Return the share of intervals that hold the calibration error, in percent."""
    right, draw = RIGHT[name], np.random.default_rng(0)
    everywhere = np.linspace(0.3, 1, 100_001)[1:]
    truth, held = float(calibration_error(binned(everywhere, right(everywhere)))), 0
    for _ in range(ECE_SAMPLES):
        sure = draw.uniform(0.3, 1, prompts)
        parts = np.zeros((prompts, 3, BINS))
        places = np.digitize(sure, np.arange(1, BINS) / BINS, right=True)
        parts[np.arange(prompts), :, places] = np.stack([np.ones(prompts), sure, draw.random(prompts) < right(sure)]).T
        low, high = calibration_interval(parts)
        held += low is not None and high is not None and low - 1e-4 <= truth <= high
    return 100 * held / ECE_SAMPLES


def draw_samples(draw: Draw, prompts: int, seed: int = 0) -> NDArray[np.float64]:
    """Draw samples of scores (SAMPLES, prompts)."""
    return draw(np.random.default_rng(seed), SAMPLES * prompts).reshape(SAMPLES, prompts)


def table(measure: Callable[[str, int], float], names: dict, counts: tuple[int, ...]) -> str:
    """Return a Markdown table of a measure by name and number of prompts."""
    rows = {name: [f"{measure(name, count):.1f}" for count in counts] for name in names}
    return str(pd.DataFrame.from_dict(rows, orient="index", columns=list(map(str, counts))).to_markdown())


if __name__ == "__main__":
    print("95 % intervals of a score that hold its mean, %, by prompts\n")
    print(table(score_coverage, SCORES, (3, 5, 10, 20, 100, 500)))
    print("\np < 0.05 between methods that are equal, %, by prompts\n")
    print(table(false_alarms, SCORES, (5, 10, 20, 100)))
    print("\n95 % intervals of an ECE that hold the true one, %, by prompts\n")
    print(table(calibration_coverage, RIGHT, (20, 100, 300, 1000)))
