"""Requests, tokens and money that endpoints are expected to take, and a guess of the time until they have answered."""

from collections.abc import Mapping
from dataclasses import dataclass

from tabulate import tabulate

from minillm.config import Endpoint, Judge, Reasoner
from minillm.endpoints.budget import Bill, estimated_tokens
from minillm.judging.questions import ORDERS, REQUEST
from minillm.planning.extrapolation import UNTIMED, Seconds
from minillm.planning.work import Amounts, Work
from minillm.stages.base import Stage
from minillm.stages.measuring import Judging
from minillm.stages.served import AskAnswers, AskKnowledge, AskResponses
from minillm.stages.system2 import AskReasoner
from minillm.stages.training import Train
from minillm.words import number

REQUEST_SECONDS = 5.0
"""Guess of the time that one request takes."""


@dataclass(frozen=True)
class Asked:
    """Requests of one stage to an endpoint."""

    endpoint: Endpoint
    bill: Bill

    @property
    def length(self) -> str:
        """Length that answers are taken to have, in words."""
        limited = isinstance(self.endpoint, Judge | Reasoner)
        return f"{self.endpoint.field}.max_tokens" if limited else "the data's"


def asked_by(stage: Stage, work: Work, amounts: Amounts, teacher: Endpoint | None) -> Asked | None:
    """Estimate what a stage asks of an endpoint, if the store has none of it.

    Args:
        stage: Settings of the stage.
        work: Its work on this machine.
        amounts: Amounts of data.
        teacher: Endpoint of the teacher, if it runs elsewhere: a training on rollouts asks it.

    Returns:
        None for a stage that asks nothing.
    """
    match stage:
        case AskKnowledge(endpoint=endpoint):
            return Asked(endpoint, _bill(amounts.rows, amounts.row_tokens, 1))
        case AskAnswers(endpoint=endpoint, generate=generate):
            count = sum(amounts.benchmark_prompts.values()) * len(generate.seeds)
            return Asked(endpoint, _bill(count, amounts.prompt, amounts.response))
        case AskResponses(endpoint=endpoint) | AskReasoner(reasoner=endpoint):
            return Asked(endpoint, _bill(amounts.examples, amounts.prompt, amounts.response))
        case Judging(judge=judge, seeds=seeds):
            of_sets = [amounts.benchmark_prompts[name] for name in judge.benchmarks]
            prompts = sum(min(judge.prompts or count, count) for count in of_sets)
            asked = estimated_tokens(REQUEST) + amounts.prompt + 2 * amounts.response
            return Asked(judge, _bill(prompts * len(seeds) * len(ORDERS) * judge.samples, asked, judge.max_tokens))
        case Train(method=method) if teacher is not None and method.runs_teacher and method.policy is not None:
            return Asked(teacher, _bill(work.rounds * method.policy.rollouts, amounts.sequence, 1))
    return None


def _bill(count: int, prompt: float, answer: float) -> Bill:
    """Return the bill of so many questions of one length, with answers of one length."""
    return Bill(count, round(count * prompt), round(count * answer))


def waiting(asked: Asked | None) -> Seconds:
    """Guess the seconds until all is answered."""
    if asked is None:
        return Seconds()
    endpoint, questions = asked.endpoint, asked.bill.questions
    seconds = questions * REQUEST_SECONDS / endpoint.parallel
    if endpoint.requests_per_minute is not None:
        seconds = max(seconds, 60 * questions / endpoint.requests_per_minute)
    return Seconds.exactly(seconds, UNTIMED)


def asked_words(asked: Mapping[str, Asked]) -> str:
    """Tell what stages, by label, ask of endpoints; nothing if none of them asks."""
    if not asked:
        return ""
    rows = [[label, *_cells(of)] for label, of in asked.items()]
    headers = ["to ask", "requests", "prompt tokens", "completion tokens", "in money"]
    if not any(of.endpoint.prices for of in asked.values()):
        rows, headers = [row[:-1] for row in rows], headers[:-1]
    align = ("left", *["right"] * (len(headers) - 1))
    table = tabulate(rows, headers, "github", colalign=align, disable_numparse=True)
    lengths = " or ".join(dict.fromkeys(of.length for of in asked.values()))
    return (
        f"Asked of endpoints, less what the store already has; answers are taken to be as long as {lengths}, and the "
        f"time of these stages, {REQUEST_SECONDS:g} s for a request, is a guess:\n\n{table}"
    )


def _cells(asked: Asked) -> list[str]:
    bill, prices = asked.bill, asked.endpoint.prices
    counts = (bill.questions, bill.prompt_tokens, bill.completion_tokens)
    return [*(f"{count:,}" for count in counts), "" if prices is None else number(bill.cost(prices), 4)]
