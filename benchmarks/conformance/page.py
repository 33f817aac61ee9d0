"""The page of the results: a table of cases by trainers, then what fails or is refused, and why."""

from typing import Any

import pandas as pd

from benchmarks.conformance.cases import TOLERANCE
from benchmarks.conformance.explanations import EXPLANATIONS
from benchmarks.conformance.suite import CASES, TRAINERS

HEAD = f"""# Conformance

Properties that make a distillation step right, as [cases of a few lines](../conformance/cases.py) for any trainer.
`python -m benchmarks.conformance` runs them on tiny models in float32, through each trainer's own loop, at its
documented defaults. The trainer's optimizer step is caught: a case compares the gradients of two steps that should be
equal. It fails if they differ by more than {TOLERANCE:.0e} of their size; a failure's number is that share.
A † means that options mend it; they are below. Samples are given, but for the resume.
"""


def page(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    cells = {TRAINERS[name].title: [_cell(of["cases"][case]) for case in CASES] for name, of in found.items()}
    table = pd.DataFrame(cells, index=[words for words, _ in CASES.values()]).to_markdown()
    versions = "\n".join(
        f"- {TRAINERS[name].title}: {', '.join(f'{library} {of}' for library, of in found[name]['versions'].items())}; "
        f"{found[name]['seconds']:.0f} s"
        for name in found
    )
    return f"{HEAD}\n{table}\n\n{versions}\n\n## What does not pass, and why\n\n{_notes(found)}\n"


def _cell(outcome: dict[str, Any]) -> str:
    if outcome["verdict"] != "fail":
        return outcome["verdict"]
    return f"**fails by {100 * outcome['error']:.1f} %**" + (" †" if outcome["passes_with"] else "")


def _notes(found: dict[str, Any]) -> str:
    """Return a line for each case and trainer that did not pass, those with the same words together."""
    lines: dict[tuple[str, str], list[str]] = {}
    for case, (words, _) in CASES.items():
        for name, of in found.items():
            outcome = of["cases"][case]
            if outcome["verdict"] == "pass":
                continue
            where, told = "", outcome.get("words", "")
            if outcome["verdict"] == "fail":
                place, why = EXPLANATIONS.get((case, name), ("not explained yet", ""))
                options = ", ".join(f"`{key}={value}`" for key, value in (outcome["passes_with"] or {}).items())
                where, told = f": {place}", why + (f" Passes with {options}." if options else "")
            lines.setdefault((words, told), []).append(f"{TRAINERS[name].title}{where}")
    return "\n".join(f"- **{words}**. {'; '.join(who)}. {told}" for (words, told), who in lines.items())
