"""A reasoner behind a real HTTP server: what it is asked, what counts of its answers, and what may be spent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minillm.config import Reasoner
from minillm.endpoints import client
from minillm.errors import StageError
from minillm.files import read_json
from minillm.stages.system2 import AskReasoner, CheckReasoner
from minillm.system2.asking import CUT, UNREAD
from tests.judge_server import KEY, serving
from tests.minillm.direct import read_lines, run_stage, write_lines
from tests.minillm.jobs import make_constant_model, make_tokenizer
from tests.teacher_server import TeacherServer

CHAIN = {"steps": {"first": "Say {question}", "second": "{first}! {question}"}, "answer": "answer is (.+)"}
FIRST = {
    "whole": "w",
    "cut": "c",
    "late cut": "l",
    "thinks too long": "t",
    "silent": "s",
    "refuses": "r",
    "filtered": "f",
}
"""What the server says first to each question; it is asked again after this and `! `."""
SAID: dict[str, dict[str, Any]] = {
    "Say cut": {"text": "The answer is 1", "finish": "length"},
    "Say thinks too long": {"text": None, "finish": "length"},
    "Say silent": {"text": None},
    "Say filtered": {"text": None, "finish": "content_filter"},
    "w! whole": {"text": "So the answer is 7"},
    "l! late cut": {"text": "The answer is 1", "finish": "length"},
    "r! refuses": {"text": "I cannot help with that."},
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TeacherServer]:
    """Serve what was planned; the model behind it is never asked."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(client, "RETRIES", 1)
    monkeypatch.chdir(tmp_path)  # where the store is
    rows = [{"index": n, "instruction": name, "choices": [], "references": []} for n, name in enumerate(FIRST)]
    write_lines(Path("questions/toy.jsonl"), rows)
    shown = {**rows[0], "choices": ["7", "8", "9"]}
    write_lines(Path("choices/toy.jsonl"), [shown])
    folders = make_constant_model(tmp_path / "model", {"cat": 0.5}), make_tokenizer(tmp_path / "tokenizer")
    with serving(TeacherServer(*folders)) as running:
        running.said = {f"Say {question}": {"text": text} for question, text in FIRST.items()} | SAID
        running.said["Say yes."] = {"text": None, "finish": "length"}  # it thinks too long even for this
        yield running


def reasoner(server: TeacherServer, **changes: Any) -> Reasoner:
    return Reasoner.model_validate({"base_url": server.base_url, "model": "large", "max_requests": 100, **changes})


def ask(server: TeacherServer, folder: str, seed: int = 1, **changes: Any) -> tuple[list[dict], dict]:
    settings = {"part": "test", "chain": CHAIN, "samples": 2, "orders": 1, "seed": seed, "system": "Be brief."}
    stage = AskReasoner.model_validate({**settings, "reasoner": reasoner(server, **changes)})
    output, summary = run_stage(stage, {"questions": Path("questions").absolute()}, Path(folder).absolute())
    return read_lines(output / "answers.jsonl"), summary


def test_answers_that_are_not_whole_have_no_final_answer(server: TeacherServer):
    answers, summary = ask(server, "asked", temperature=0.5, max_tokens=9)
    found = {
        name: [(a["answer"], a["problem"], a["tokens"]) for a in answers if a["index"] == n]
        for n, name in enumerate(FIRST)
    }
    assert found == {
        "whole": [("7", "", 10)] * 2,
        "cut": [(None, CUT, 5)] * 2,
        "late cut": [(None, CUT, 10)] * 2,
        "thinks too long": [(None, CUT, 5)] * 2,
        "silent": [(None, "malformed", 0)] * 2,
        "refuses": [(None, UNREAD, 10)] * 2,
        "filtered": [(None, "refused by the endpoint", 0)] * 2,
    }  # fmt: skip
    assert answers[0]["responses"] == {"first": "w", "second": "So the answer is 7"}
    assert {name: summary[f"without_answer/{name}"] for name in (CUT, UNREAD, "malformed")} == {
        CUT: 6,
        UNREAD: 2,
        "malformed": 2,
    }
    bodies = server.requests
    # Two samples: seven first prompts, the silent one three times, and three second ones.
    assert summary["questions"] == len(bodies) == 2 * (6 + 3 + 3)
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (240, 120)
    assert {(body["temperature"], body["max_tokens"]) for body in bodies} == {(0.5, 9)}
    assert [message["role"] for message in bodies[0]["messages"]] == ["system", "user"]
    seeds = {body["seed"] for body in bodies}
    assert len(seeds) == 2, "one for each sample"

    again, same = ask(server, "again", temperature=0.5, max_tokens=9)
    assert (again, same) == (answers, summary)
    assert len(bodies) == 24, "nothing is paid for twice"
    server.said["Say silent"] = {"text": "s"}
    ask(server, "other", seed=2, temperature=0.5, max_tokens=9)
    assert seeds.isdisjoint(body["seed"] for body in bodies[24:])


def check(server: TeacherServer, folder: str, **changes: Any) -> tuple[Path, dict]:
    settings = {"chain": CHAIN, "test_samples": 3, "samples": 2, "orders": 9}
    stage = CheckReasoner.model_validate({**settings, "reasoner": reasoner(server, **changes)})
    inputs = {"test": Path("questions").absolute(), "unlabelled": Path("choices").absolute()}
    return run_stage(stage, inputs, Path(folder).absolute())


def test_the_budget_is_compared_with_all_that_may_be_asked_before_anything_is(server: TeacherServer):
    with pytest.raises(
        StageError, match=r"reasoner.max_requests is 54, but this check and all answers by System 2 may take 55;"
    ):
        check(server, "few", max_requests=54)
    dear = {"prices": {"prompt": 0, "completion": 1e6}, "max_cost": 549}
    with pytest.raises(StageError, match=r"reasoner.max_cost is 549.0, but .* may take 550;"):
        check(server, "dear", max_tokens=10, **dear)
    assert server.requests == []
    output, summary = check(server, "enough", max_requests=55, max_tokens=10)
    assert summary["questions"] == 55, "7 · 3 test answers and 3 orders · 2, each of two steps, and one"
    parts = read_json(output / "reasoner.json")
    assert parts["unlabelled"]["completion_tokens"] == 3 * 2 * 2 * 10
    # "Say whole\nA. 7 …" and "! whole\nA. 7 …" have 24 and 22 bytes, three to a token; the first response ten tokens.
    assert parts["unlabelled"]["prompt_tokens"] == 3 * 2 * (8 + 8 + 10)
    assert [body["max_tokens"] for body in server.requests] == [10]


def test_a_server_that_is_not_there_stops_it_at_once(server: TeacherServer):
    with pytest.raises(
        StageError, match=r"does not answer: Connection error. Start its server, or see reasoner.base_url"
    ):
        check(server, "nobody", base_url="http://127.0.0.1:9/v1")
