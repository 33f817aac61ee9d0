"""Requests to endpoints that a plan tells of, counted by hand."""

from typing import get_type_hints

import pytest

from minillm.config import Endpoint, Judge, Prices
from minillm.endpoints.budget import estimated_tokens
from minillm.judging.questions import REQUEST
from minillm.planning.asked import Asked, asked_by, asked_words, waiting
from minillm.planning.work import Work
from minillm.stages import STAGES
from minillm.stages.measuring import Judging
from tests.minillm.test_planning import AMOUNTS, on_rollouts, train

JUDGE = Judge(
    base_url="http://localhost/v1",
    model="strong",
    benchmarks=("dolly", "sni"),
    prompts=6,
    samples=2,
    temperature=1.0,
    max_tokens=100,
    max_questions=1000,
    parallel=4,
    prices=Prices(prompt=1.0, completion=10.0),
)


def asked_of(judge: Judge) -> Asked:
    found = asked_by(Judging(role="sft", judge=judge, seeds=(1, 2), methods=3), Work(), AMOUNTS, None)
    assert found is not None
    return found


def test_a_judge_is_asked_in_both_orders_with_both_answers():
    found = asked_of(JUDGE)
    questions = (5 + 6) * 2 * 2 * 2  # prompts of two sets, seeds, orders, samples
    assert found.bill.questions == questions
    assert found.bill.prompt_tokens == questions * (estimated_tokens(REQUEST) + 12 + 2 * 8)
    assert found.bill.completion_tokens == questions * 100
    assert waiting(found).value == questions * 5 / 4
    assert asked_of(JUDGE.model_copy(update={"prompts": None})).bill.questions == (5 + 7) * 8


def test_a_judge_stands_in_the_table_with_its_price():
    words = asked_words({"judge sft": asked_of(JUDGE)})
    assert "answers are taken to be as long as evaluation.judge.max_tokens" in words
    last = [cell.strip() for cell in words.splitlines()[-1].split("|")[1:-1]]
    bill = asked_of(JUDGE).bill
    money = (bill.prompt_tokens + 10 * 8800) / 1e6
    assert last == ["judge sft", "88", f"{bill.prompt_tokens:,}", "8,800", f"{money:.4f}"]
    assert "in money" not in asked_words({"judge sft": asked_of(JUDGE.model_copy(update={"prices": None}))})
    assert asked_words({}) == ""


@pytest.mark.parametrize("teacher", [None, JUDGE])
def test_rollouts_ask_a_teacher_that_runs_elsewhere_alone(teacher: Endpoint | None):
    found = asked_by(train(on_rollouts()), Work(rounds=3), AMOUNTS, teacher)
    assert (found and found.bill.questions) == (None if teacher is None else 3 * 8)


def test_every_stage_that_asks_an_endpoint_is_told_of():
    """Those that only read data ask while the plan is made."""

    def endpoints(kind: str) -> list[type]:
        return [of for of in get_type_hints(STAGES[kind]).values() if isinstance(of, type) and issubclass(of, Endpoint)]

    asking = {kind for kind in STAGES if endpoints(kind) and not STAGES[kind].reads_only}
    assert asking == {"judge", "asked_responses", "asked_knowledge", "asked_answers", "asked_chain"}
