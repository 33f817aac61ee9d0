"""Stage `reasoner`: whether an endpoint answers, and whether its budget suffices, before anything is trained."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minillm.data.benchmarks import load_benchmarks
from minillm.endpoints.budget import Bill, Budget, estimated_tokens
from minillm.files import write_json
from minillm.placeholders import fill, placeholders
from minillm.served.chat import RemoteModel
from minillm.served.check import QUESTION, require_answer
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import CheckReasoner
from minillm.system2.questions import orders_of, shown


def run(job: Job[CheckReasoner]) -> Summary:
    """Write reasoner.json.

    Raises:
        StageError: The questions may take more than the budget, or the endpoint does not answer or denies access.
    """
    settings, reasoner = job.settings, job.settings.reasoner
    asked = {"test": (settings.test_samples, 1), "unlabelled": (settings.samples, settings.orders)}
    bills = {part: most_asked(settings, job.inputs[part], *counts) for part, counts in asked.items()}
    probe = Bill(1, estimated_tokens(QUESTION), reasoner.max_tokens)
    whole = sum(bills.values(), probe)
    print(f"System 2 takes at most {whole.questions:,} requests: {whole.words(reasoner.prices)}", flush=True)

    def excess(_: float, wanted: float) -> str:
        return f"but this check and all answers by System 2 may take {wanted:,.6g}; raise it, or ask for less"

    Budget(reasoner, Bill(), excess).check(whole)
    require_answer(RemoteModel(reasoner, job.runtime.store), job.output, reasoner.max_tokens)
    write_json(job.output / "reasoner.json", {part: asdict(of) for part, of in bills.items()})
    return {**whole.figures(reasoner.prices)}


def most_asked(settings: CheckReasoner, questions: Path, samples: int, orders: int) -> Bill:
    """Return the most that the answers to a part may take, with responses as long as their limit."""
    limit = settings.reasoner.max_tokens
    bill = Bill()
    for row in (row for rows in load_benchmarks(questions).values() for row in rows):
        count = samples * orders_of(row, orders)
        for prompt in settings.chain.steps.values():
            tokens = _prompt_tokens(prompt, row, limit)
            bill += Bill(count, count * tokens, count * limit)
    return bill


def _prompt_tokens(prompt: str, row: Mapping[str, Any], limit: int) -> int:
    """Estimate the tokens of a prompt in which earlier responses stand that are as long as their limit."""
    used = placeholders(prompt)
    known = {**dict.fromkeys(used, ""), "question": shown(row, 0)}
    return estimated_tokens(fill(prompt, known)) + limit * sum(name != "question" for name in used)
