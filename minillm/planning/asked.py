"""What a plan says of an endpoint: requests, tokens and money, and a guess of the time that the answers take."""

from collections.abc import Mapping

from tabulate import tabulate

from minillm.config import Endpoint
from minillm.endpoints.budget import Bill
from minillm.planning.extrapolation import UNTIMED, Seconds
from minillm.planning.work import Amounts, Work
from minillm.stages.base import Stage
from minillm.stages.served import AskAnswers, AskKnowledge, AskResponses
from minillm.stages.system2 import AskReasoner
from minillm.stages.training import Train
from minillm.words import number

REQUEST_SECONDS = 5.0
"""Guess of the time that one request takes."""


def asked_bill(stage: Stage, work: Work, amounts: Amounts) -> Bill:
    """Estimate what a stage asks of a served model, if the store has none of it.

    A training asks if its method has the teacher run.
    """
    match stage:
        case AskKnowledge():
            return Bill(amounts.rows, round(amounts.rows * amounts.row_tokens), amounts.rows)
        case AskAnswers(generate=generate):
            count = sum(amounts.benchmark_prompts.values()) * len(generate.seeds)
            return Bill(count, round(count * amounts.prompt), round(count * amounts.response))
        case AskResponses() | AskReasoner():
            count = amounts.examples
            return Bill(count, round(count * amounts.prompt), round(count * amounts.response))
        case Train(method=method) if method.runs_teacher and method.policy is not None:
            count = work.rounds * method.policy.rollouts
            return Bill(count, round(count * amounts.sequence), count)
        case _:
            return Bill()


def waiting(endpoint: Endpoint | None, bill: Bill) -> Seconds:
    """Guess the seconds until all is answered; none without an endpoint."""
    if endpoint is None:
        return Seconds()
    seconds = bill.questions * REQUEST_SECONDS / endpoint.parallel
    if endpoint.requests_per_minute is not None:
        seconds = max(seconds, 60 * bill.questions / endpoint.requests_per_minute)
    return Seconds.exactly(seconds, UNTIMED)


def asked_words(endpoint: Endpoint | None, bills: Mapping[str, Bill], lengths: str) -> str:
    """Tell what stages, by label, ask of the endpoint; nothing if there is none, or none of them asks."""
    asked = {label: bill for label, bill in bills.items() if bill.questions}
    if endpoint is None or not asked:
        return ""
    rows = [
        [label, f"{bill.questions:,}", f"{bill.prompt_tokens:,}", f"{bill.completion_tokens:,}"]
        + ([] if endpoint.prices is None else [number(bill.cost(endpoint.prices), 4)])
        for label, bill in asked.items()
    ]
    headers = ["to ask", "requests", "prompt tokens", "completion tokens", "in money"][: len(rows[0])]
    align = ("left", *["right"] * (len(headers) - 1))
    table = tabulate(rows, headers, "github", colalign=align, disable_numparse=True)
    return (
        f"Asked of the endpoint, less what the store already has; answers are taken to be {lengths}, and the "
        f"time of these stages, {REQUEST_SECONDS:g} s for a request, is a guess:\n\n{table}"
    )
