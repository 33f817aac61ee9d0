"""What a plan says of an endpoint: requests, tokens and money, and a guess of the time that the answers take."""

from collections.abc import Mapping

from tabulate import tabulate

from minillm.endpoints.budget import Bill
from minillm.planning.extrapolation import UNTIMED, Seconds
from minillm.planning.work import Amounts
from minillm.stages.base import Stage
from minillm.stages.served import AskAnswers, AskKnowledge, AskResponses
from minillm.words import number

Asked = AskAnswers | AskKnowledge | AskResponses
"""Stages that ask a served teacher."""
REQUEST_SECONDS = 5.0
"""Guess of the time that one request takes."""


def asked_bill(stage: Asked, amounts: Amounts) -> Bill:
    """Estimate what a stage asks for, if the store has none of it; responses are taken to be as long as the data's."""
    match stage:
        case AskKnowledge():
            count = amounts.rows
            return Bill(count, round(count * amounts.row_tokens), count)
        case AskAnswers(generate=generate):
            count = sum(amounts.benchmark_prompts.values()) * len(generate.seeds)
        case AskResponses():
            count = amounts.examples
    return Bill(count, round(count * amounts.prompt), round(count * amounts.response))


def waiting(stage: Asked, bill: Bill) -> Seconds:
    """Guess the seconds until all is answered."""
    seconds = bill.questions * REQUEST_SECONDS / stage.endpoint.parallel
    if stage.endpoint.requests_per_minute is not None:
        seconds = max(seconds, 60 * bill.questions / stage.endpoint.requests_per_minute)
    return Seconds.exactly(seconds, UNTIMED)


def asked_words(stages: Mapping[str, Stage], amounts: Amounts) -> str:
    """Tell what some stages, by label, ask of the endpoint; nothing if none does."""
    asked = {label: (of, asked_bill(of, amounts)) for label, of in stages.items() if isinstance(of, Asked)}
    if not asked:
        return ""
    rows = [
        [label, f"{bill.questions:,}", f"{bill.prompt_tokens:,}", f"{bill.completion_tokens:,}"]
        + ([] if of.endpoint.prices is None else [number(bill.cost(of.endpoint.prices), 4)])
        for label, (of, bill) in asked.items()
    ]
    headers = ["to ask", "requests", "prompt tokens", "completion tokens", "in money"][: len(rows[0])]
    align = ("left", *["right"] * (len(headers) - 1))
    table = tabulate(rows, headers, "github", colalign=align, disable_numparse=True)
    return (
        "Asked of the endpoint, less what the store already has; answers are taken to be as long as the data's, and "
        f"the time of these stages, {REQUEST_SECONDS:g} s for a request, is a guess:\n\n{table}"
    )
