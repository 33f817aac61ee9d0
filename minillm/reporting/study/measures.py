"""Figures beside the scores of a study: how near its variants come to the teacher, and what their training takes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd

from minillm.files import read_json
from minillm.reporting.plots import read_curves
from minillm.reporting.provenance import manifest_of
from minillm.store.artifacts import SYSTEM_METRICS, WORKER_MEMORY
from minillm.words import ABSENT, with_spread
from minillm.worker.progress import read_metrics

Figure = Callable[[Path], float | None]
"""From an artifact to a figure of it; None if it has none."""


def measure_table(inputs: Mapping[str, Path], variants: Sequence[str], seeds: Sequence[int]) -> pd.DataFrame:
    """Return variant × figure, 'mean ± standard deviation over training seeds'; figures that no run has are left out.

    Args:
        inputs: Artifacts of the runs, named `KIND/VARIANT/SEED`.
        variants: Rows of the table.
        seeds: Training seeds.
    """
    rows = {}
    for variant in variants:
        rows[variant] = {}
        for title, (kind, figure, digits) in FIGURES.items():
            paths = (inputs.get(f"{kind}/{variant}/{seed}") for seed in seeds)
            found = [figure(path) for path in paths if path is not None]
            rows[variant][title] = _cell([value for value in found if value is not None], len(seeds), digits)
    table = pd.DataFrame.from_dict(rows, orient="index", dtype=str)
    return table.loc[:, (table != ABSENT).any()]


def _cell(values: Sequence[float], seeds: int, digits: int) -> str:
    """Write a mean and its spread; a figure that not all seeds have is absent."""
    if len(values) < seeds:
        return ABSENT
    return with_spread(fmean(values), stdev(values) if seeds > 1 else None, digits)


def _per_token(divergence: str) -> Figure:
    return lambda path: read_json(path / "exposure.json")["per_token"][divergence]["value"]


def _excess(path: Path) -> float:
    return read_json(path / "exposure.json")["exaccerr"]["value"][-1]


def _distinct(path: Path) -> float:
    return read_json(path / "diversity.json")["mean"]["distinct_4"]


def _calibration_error(path: Path) -> float:
    return fmean(of["ece"]["value"] for of in read_json(path / "calibration.json").values())


def _next_token_error(path: Path) -> float:
    sets = read_json(path / "held_out.json")
    return fmean(of["ece"]["value"] for part in sets.values() for of in part.values())


def _tokens(path: Path) -> float | None:
    """Learnt tokens of a whole training, in thousands; each line of the log has the mean over the steps before it."""
    curve = read_curves(path).get("train/tokens")
    if curve is None:
        return None
    steps = np.diff(curve.index.to_numpy(), prepend=0)
    return float((curve.to_numpy() * steps).sum()) / 1e3


def _seconds(path: Path) -> float | None:
    manifest = manifest_of(path)
    return None if manifest is None or manifest.timings is None else manifest.timings.seconds


def _memory(path: Path) -> float | None:
    """Most memory that the worker was seen to hold, GB."""
    if not (path / SYSTEM_METRICS).exists():
        return None
    seen = [value for _, name, value in read_metrics(path / SYSTEM_METRICS) if name == WORKER_MEMORY]
    return max(seen) / 1e3 if seen else None


FIGURES: dict[str, tuple[str, Figure, int]] = {
    "reverse KL": ("exposure", _per_token("reverse_kl"), 3),
    "forward KL": ("exposure", _per_token("forward_kl"), 3),
    "ExAccErr, %": ("exposure", _excess, 0),
    "distinct 4-grams, %": ("diversity", _distinct, 1),
    "ECE": ("calibration", _calibration_error, 3),
    "next-token ECE": ("held_out", _next_token_error, 3),
    "thousand tokens": ("train", _tokens, 0),
    "training, s": ("train", _seconds, 0),
    "memory, GB": ("train", _memory, 2),
}
"""Kind of artifact, figure and decimals of each column."""
