"""The stage `judge` against a real server: what it asks, what it keeps and what it makes of the answers."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from minillm.config import Judge
from minillm.errors import StageError
from minillm.judging.questions import chosen
from minillm.stages.measuring import Judging
from tests import judge_server
from tests.judge_server import KEY, TOKENS, fails, ratings, says, serving
from tests.minillm.direct import read_lines, run_stage, write_lines
from tests.minillm.jobs import worker_command, worker_environment, write_job
from tests.waiting import wait_for

MODEL = [8, 4, 6, 9]
REFERENCE = [5, 5, 6, 10]
"""Ratings of the prompts' answers and references, given at the end of their texts."""


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[judge_server.Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)  # where the store is
    with serving(judge_server.Endpoint()) as running:
        yield running


def make_inputs(folder: Path, benchmarks: tuple[str, ...] = ("dolly",), prompts: int = 4) -> dict[str, Path]:
    for name in benchmarks:
        rows = range(prompts)
        write_lines(
            folder / "benchmarks" / f"{name}.jsonl",
            [
                {"index": i, "instruction": f"{name} {i}", "context": "", "references": [f"right {REFERENCE[i % 4]}"]}
                for i in rows
            ],
        )
        write_lines(
            folder / "responses" / f"{name}.jsonl",
            [
                {"index": i, "seed": seed, "response": f"{name} {i} {seed} answer {MODEL[i % 4]}"}
                for seed in (10, 20)
                for i in rows
            ],
        )
    return {"benchmarks": folder / "benchmarks", "responses": folder / "responses"}


def settings(server: judge_server.Endpoint, methods: int = 1, **changes: Any) -> Judging:
    facts = {"base_url": server.base_url, "model": "gpt", "benchmarks": ("dolly",), "max_questions": 1000}
    judge = Judge.model_validate({**facts, **changes})
    return Judging(role="minillm", judge=judge, seeds=judge.seeds or (10,), methods=methods)


def judged(stage: Judging, inputs: dict[str, Path], folder: Path) -> tuple[dict, dict]:
    """Run the stage; return judge.json and the summary."""
    output, summary = run_stage(stage, inputs, folder)
    return json.loads((output / "judge.json").read_text(encoding="utf-8")), summary


def test_the_figures_by_hand(tmp_path, server):
    server.planned = [says(ratings(9, 5)), fails(500)]  # the answer shown first gains a point
    result, summary = judged(settings(server, parallel=1), make_inputs(tmp_path), tmp_path / "run")
    # model: (9 + 8) / 2 + 4 + 6 + 9 = 27.5; reference: 5 + 5 + 6 + 10 = 26
    row = result["benchmarks"]["dolly"]
    assert row["ratio"] == pytest.approx(100 * 27.5 / 26)
    assert row["interval"][0] < row["ratio"] < row["interval"][1]
    assert (row["model_mean"], row["reference_mean"]) == (27.5 / 4, 26 / 4)
    assert (row["prompts"], row["all_prompts"], row["questions"], row["unanswered"]) == (4, 4, 8, 0)
    assert row["order_agreement"] == 100.0
    assert row["first_advantage"] == pytest.approx(1 / 2 / 4)
    assert result["spent"] == {"questions": 8, "prompt_tokens": 8 * TOKENS[0], "completion_tokens": 8 * TOKENS[1]}
    assert result["answered_by"] == ["gpt-exactly"]
    assert summary["judge/dolly"] == summary["judge/mean"] == row["ratio"]
    assert summary["prompt_tokens"] == 8 * TOKENS[0]


def test_both_orders_are_asked_and_told_apart(tmp_path, server):
    server.rate = lambda first, second: ratings(9, 3)  # the higher rating for the answer shown first
    result, _ = judged(settings(server), make_inputs(tmp_path), tmp_path / "run")
    row = result["benchmarks"]["dolly"]
    assert row["ratio"] == 100.0, "a bias for a place cancels"
    assert (row["order_agreement"], row["first_advantage"]) == (0.0, 6.0)
    pairs = Counter(judge_server.shown(body) for body in server.requests)
    model, reference = "dolly 0 10 answer 8", "right 5"
    assert pairs[model, reference] == pairs[reference, model] == 1
    assert len(pairs) == 8


def test_samples_seeds_and_benchmarks_multiply_and_each_benchmark_weighs_the_same(tmp_path, server):
    inputs = make_inputs(tmp_path, ("dolly", "self_inst"))
    rows = read_lines(inputs["responses"] / "self_inst.jsonl")
    write_lines(inputs["responses"] / "self_inst.jsonl", [{**row, "response": f"x {row['seed']} 3"} for row in rows])
    stage = settings(server, benchmarks=("dolly", "self_inst"), samples=3, temperature=1.0, seeds=(10, 20))
    result, _ = judged(stage, inputs, tmp_path / "run")
    assert len(server.requests) == 2 * 4 * 2 * 2 * 3  # benchmarks, prompts, seeds, orders, samples
    assert result["benchmarks"]["self_inst"]["ratio"] == pytest.approx(100 * 12 / 26)
    assert result["mean"]["ratio"] == pytest.approx((100 * 27 / 26 + 100 * 12 / 26) / 2)


def test_a_malformed_answer_is_asked_for_again_and_then_counted_never_guessed(tmp_path, server):
    inputs = make_inputs(tmp_path)
    talk = [says(text) for text in ("I'd say 7", ratings(0, 5), ratings(11, 5))]
    server.planned = [says("7 8"), says(None), says(ratings(2, 2)), *talk]  # two questions, three attempts each
    result, summary = judged(settings(server, parallel=1), inputs, tmp_path / "run")
    row = result["benchmarks"]["dolly"]
    # Prompt 0 was rated 2 and 2 with the model first, but not with the reference first, so it is left out.
    assert row["ratio"] == pytest.approx(100 * (4 + 6 + 9) / (5 + 6 + 10))
    assert (row["unanswered"], row["prompts"], row["all_prompts"]) == (1, 3, 4)
    assert summary["unanswered/dolly"] == 1
    assert result["spent"]["questions"] == len(server.requests) == 8 + 2 + 2
    table = pd.read_parquet(tmp_path / "run" / "output" / "ratings.parquet")
    assert table.query("index == 0")[["model", "reference"]].values.tolist()[0] == [2, 2]
    assert table.query("index == 0").isna().any(axis=1).tolist() == [False, True]

    judged(settings(server, parallel=1), inputs, tmp_path / "again")
    assert len(server.requests) == 12, "what stayed without an answer is not paid for again"
    server.planned = [says("seven")] * 9
    judged(settings(server, parallel=1, attempts=5), inputs, tmp_path / "more")
    assert len(server.requests) == 14, "unless more attempts are allowed"


def test_a_larger_limit_asks_again_only_what_was_malformed(tmp_path, server):
    inputs = make_inputs(tmp_path)
    server.planned = [says('{"assistant_1": 8, "assi')]
    judged(settings(server, parallel=1, attempts=1), inputs, tmp_path / "run")
    result, _ = judged(settings(server, parallel=1, attempts=1, max_tokens=1000), inputs, tmp_path / "again")
    assert [body["max_tokens"] for body in server.requests] == [256] * 8 + [1000]
    assert result["benchmarks"]["dolly"]["unanswered"] == 0


def test_one_question_that_is_refused_leaves_the_others(tmp_path, server):
    server.planned = [says(ratings(8, 5)), fails(400)]
    result, _ = judged(settings(server, parallel=1), make_inputs(tmp_path), tmp_path / "run")
    assert result["benchmarks"]["dolly"]["unanswered"] == 1
    assert server.answered.total() == 7


def test_an_endpoint_that_refuses_every_question_is_bad_input(tmp_path, server):
    server.planned = [fails(422)] * 10_000
    with pytest.raises(StageError, match=r"takes no question; gpt says: .*status 422.*temperature: null"):
        run_stage(settings(server), make_inputs(tmp_path, prompts=40), tmp_path / "run")
    assert len(server.requests) < 4 * 40, "it does not try them all"


def test_a_judge_that_never_keeps_to_the_form_is_bad_input_that_quotes_it(tmp_path, server):
    server.rate = lambda first, second: f"As an AI I like both {len(server.requests)} times."
    with pytest.raises(StageError, match=r"rated no prompt in both orders.*As an AI I like both 3 times"):
        run_stage(settings(server, parallel=1), make_inputs(tmp_path), tmp_path / "run")


def test_other_benchmarks_stages_and_samples_use_the_answers_that_are_there(tmp_path, server):
    inputs = make_inputs(tmp_path, ("dolly", "self_inst"))
    first, _ = judged(settings(server), inputs, tmp_path / "1")
    assert len(server.requests) == 8
    both = settings(server, benchmarks=("self_inst", "dolly"), parallel=2, max_questions=50, timeout_seconds=9)
    second, _ = judged(both, inputs, tmp_path / "2")
    assert len(server.requests) == 16
    assert second["benchmarks"]["dolly"] == first["benchmarks"]["dolly"]
    other = Judging(role="sft", judge=both.judge, seeds=(10,), methods=1)
    assert judged(other, inputs, tmp_path / "3")[0]["spent"] == second["spent"]
    judged(settings(server, base_url=server.base_url + "/"), inputs, tmp_path / "6")
    assert len(server.requests) == 16
    judged(settings(server, temperature=1.0), inputs, tmp_path / "4")
    assert len(server.requests) == 24, "another temperature is another question"
    judged(settings(server, temperature=1.0, samples=2), inputs, tmp_path / "5")
    assert len(server.requests) == 32, "of two samples one is there"
    assert set(server.answered.values()) == {1, 3}


def test_the_judge_reads_no_thinking_parts(tmp_path, server):
    stage = settings(server).model_copy(update={"strip": r"dolly \d+ \d+\s*|right\s*"})
    judged(stage, make_inputs(tmp_path), tmp_path / "run")
    shown = [request["messages"][0]["content"] for request in server.requests]
    assert all("Response]\nanswer" in text and not re.search(r"dolly \d \d", text) for text in shown)
    assert all(re.search(r"Response\]\n\d+\n", text) for text in shown), "nor of the reference"


def test_fewer_prompts_are_among_those_of_more():
    rows = [{"index": i} for i in range(50)]
    ten, twenty = ({row["index"] for row in chosen(rows, count)} for count in (10, 20))
    assert len(ten) == 10
    assert ten < twenty
    assert chosen(rows, None) == rows
    assert chosen(rows, 500) == rows
    assert ten != set(range(10)), "benchmarks are sorted by topic"


def test_no_more_requests_at_once_than_allowed(tmp_path, server):
    server.rate = lambda first, second: (time.sleep(0.1), ratings(5, 5))[1]
    judged(settings(server, parallel=3), make_inputs(tmp_path, prompts=10), tmp_path / "run")
    assert server.most_at_once == 3


PRICED = {"prices": {"prompt": 1000.0, "completion": 2000.0}}


@pytest.mark.parametrize(
    ("changes", "methods", "message"),
    [
        ({"max_questions": 7}, 1, r"max_questions is 7, .* may take 8; raise it, or lower prompts"),
        ({"max_questions": 31}, 4, r"max_questions is 31, a share of 7\.75 for each of 4 methods"),
        # 8 questions of 828 bytes: 2,208 tokens for 2.208, and 8 × 256 for 4.096 at most
        ({"max_cost": 6.3, **PRICED}, 1, r"max_cost is 6\.3, .* may take 6\.304;"),
    ],
)
def test_more_than_the_budget_is_refused_before_anything_is_asked(tmp_path, server, capsys, changes, methods, message):
    with pytest.raises(StageError, match=message):
        run_stage(settings(server, methods, **changes), make_inputs(tmp_path), tmp_path / "run")
    assert server.requests == []
    assert (
        "8 questions, 0 of them settled already; to ask: 8, an estimated 2,208 prompt tokens" in capsys.readouterr().out
    )


def test_the_budget_is_stated_before_and_what_was_spent_after(tmp_path, server, capsys):
    inputs = make_inputs(tmp_path)
    result, summary = judged(settings(server, 4, max_questions=32, max_cost=32.0, **PRICED), inputs, tmp_path / "run")
    before, *_, after = (line for line in capsys.readouterr().out.splitlines() if "tokens" in line)
    assert "at most 2,048 completion tokens, at most 6.3040 in money" in before
    assert after == "asked 8 questions: 800 prompt tokens and 72 completion tokens, 0.9440 in money; 0 refused"
    assert result["spent"]["cost"] == summary["cost"] == pytest.approx(0.8 + 0.144)
    judged(settings(server, max_questions=1), inputs, tmp_path / "again")
    assert "to ask: 0" in capsys.readouterr().out, "what is there costs nothing, whatever the budget"


def test_asking_again_stays_within_the_budget(tmp_path, server):
    server.rate = lambda first, second: "never"
    with pytest.raises(StageError, match="max_questions is 10"):
        run_stage(settings(server, max_questions=10), make_inputs(tmp_path), tmp_path / "run")
    assert server.answered.total() == 10
    server.rate = judge_server.rate_by_number
    with pytest.raises(StageError, match="max_questions is 10"):
        run_stage(settings(server, max_questions=10), make_inputs(tmp_path), tmp_path / "again")
    assert server.answered.total() == 10, "a new attempt brings no new budget"


def test_a_missing_response_is_named(tmp_path, server):
    inputs = make_inputs(tmp_path)
    rows = read_lines(inputs["responses"] / "dolly.jsonl")
    write_lines(inputs["responses"] / "dolly.jsonl", rows[1:])
    with pytest.raises(StageError, match="dolly: prompt 0 has no response of seed 10"):
        run_stage(settings(server), inputs, tmp_path / "run")


def kept(folder: Path) -> int:
    """Return the number of answers in the store, as another process sees it."""
    with contextlib.suppress(sqlite3.OperationalError):
        return (
            sqlite3.connect(folder / "judge" / "answers.sqlite").execute("SELECT COUNT(*) FROM answers").fetchone()[0]
        )
    return 0


def stopped(number: signal.Signals, held_seconds: float, folder: Path, server: judge_server.Endpoint) -> tuple:
    """Stop a worker by a signal at 15 answers of 40 with 4 questions under way; return the spec and how it ended."""
    server.planned = [lambda handler, body: handler.answer(body, server.rate(*judge_server.shown(body)))] * 15
    server.planned += [judge_server.waits(held_seconds)] * 4
    inputs = make_inputs(folder, prompts=20)
    spec = write_job(folder / "work", settings(server, parallel=4), inputs, store=str(folder / "store"))
    with (folder / "log").open("wb") as log:
        worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=folder, stdout=log, stderr=log)
    wait_for(lambda: kept(folder / "store") >= 15 and not server.planned, 60)
    worker.send_signal(number)
    return spec, worker.wait(30)


def test_a_worker_killed_in_the_middle_pays_for_nothing_twice(tmp_path, server):
    spec, status = stopped(signal.SIGKILL, 3600, tmp_path, server)
    assert status == -signal.SIGKILL
    assert kept(tmp_path / "store") == server.answered.total() == 15
    again = subprocess.run(worker_command(spec), env=worker_environment(), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "40 questions, 15 of them settled already" in again.stdout
    assert server.answered.total() == 40
    assert set(server.answered.values()) == {1}
    assert json.loads((tmp_path / "work" / "summary.json").read_text(encoding="utf-8"))["questions"] == 40
    assert KEY not in again.stdout + again.stderr
    assert_key_nowhere(tmp_path, {"answers.sqlite", "judge.json", "job.json", "summary.json", "log"})


def test_two_workers_with_the_same_questions_ask_each_once(tmp_path, server):
    server.rate = lambda first, second: (time.sleep(0.2), judge_server.rate_by_number(first, second))[1]
    inputs = make_inputs(tmp_path, prompts=8)
    workers = []
    for name in ("one", "other"):
        spec = write_job(tmp_path / name, settings(server, parallel=2), inputs, store=str(tmp_path / "store"))
        workers.append(subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=tmp_path))
    assert [worker.wait(120) for worker in workers] == [0, 0]
    assert server.answered.total() == 16
    assert set(server.answered.values()) == {1}
    assert server.most_at_once <= 2


def test_a_worker_told_to_stop_waits_for_what_is_under_way(tmp_path, server):
    _, status = stopped(signal.SIGTERM, 1, tmp_path, server)
    assert status == 143
    assert kept(tmp_path / "store") == server.answered.total() == 19


def test_a_key_that_the_server_repeats_stands_in_no_file_and_no_log(tmp_path, server):
    server.planned = [lambda handler, _: handler.send(403, {"error": {"message": f"{KEY} may not"}})] * 8
    inputs = make_inputs(tmp_path)
    spec = write_job(tmp_path / "work", settings(server), inputs, store=str(tmp_path / "store"))
    done = subprocess.run(worker_command(spec), env=worker_environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3, "bad input"
    assert "*** may not" in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert_key_nowhere(tmp_path, {"answers.sqlite", "job.json", "error.txt"})


def assert_key_nowhere(folder: Path, looked_at: set[str]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert looked_at <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
