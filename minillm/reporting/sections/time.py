"""Section on time: how long the stages took, and what `--plan` had estimated."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from minillm.reporting.provenance import manifest_of
from minillm.reporting.sections.base import Section
from minillm.words import duration, number, percent_more


def time_section(inputs: Mapping[str, Path], planned: Mapping[str, float]) -> Section | None:
    """Show seconds planned and taken of every stage behind the report; None if they were not planned.

    Args:
        inputs: Inputs of the report.
        planned: Seconds by name of the stage.
    """
    taken = {}
    for path in inputs.values():
        manifest = manifest_of(path)
        if manifest is not None and manifest.timings is not None and manifest.label in planned:
            taken[manifest.label] = manifest.timings
    if not taken:
        return None
    longest_first = sorted(taken, key=lambda label: -taken[label].seconds)
    table = pd.DataFrame(
        {
            label: {
                "planned, s": number(planned[label], 0),
                "taken, s": number(taken[label].seconds, 0),
                "planned / taken": number(planned[label] / taken[label].seconds, 2),
            }
            for label in longest_first
        }
    ).T
    before, after = sum(planned[label] for label in taken), sum(timings.seconds for timings in taken.values())
    words = (
        f"`--plan` estimated {duration(before)} for these stages together, before any of them ran; they "
        f"took {duration(after)} ({percent_more(before / after)} planned against taken). Stages that ran "
        "in parallel are added up."
    )
    if again := [label for label, timings in taken.items() if timings.attempt > 1]:
        words += f" Only the last attempt of {', '.join(again)} is counted."
    return Section("Time, planned and taken", words, {"Seconds of each stage": table})
