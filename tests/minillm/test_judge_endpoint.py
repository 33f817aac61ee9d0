"""The judge's endpoint against a real server that misbehaves as servers do."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from minillm.config import Judge
from minillm.endpoints import client
from minillm.endpoints.client import EndpointError, RefusedError
from minillm.errors import StageError
from minillm.judging.asking import JudgeClient
from minillm.judging.questions import message, read_ratings
from tests import judge_server
from tests.judge_server import KEY, TOKENS, breaks_off, breaks_off_unannounced, fails, ratings, says, serving, waits

QUESTION = message("Say it.", "", "mine 7", "theirs 4")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[judge_server.Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(client, "RETRIES", 2)
    with serving(judge_server.Endpoint()) as running:
        yield running


def judge(server: judge_server.Endpoint, **changes: Any) -> Judge:
    facts = {"base_url": server.base_url, "model": "gpt", "benchmarks": ("dolly",), "max_questions": 100}
    return Judge.model_validate({**facts, **changes})


def asked(server: judge_server.Endpoint, **changes: Any) -> tuple[int, int] | None:
    return read_ratings(JudgeClient(judge(server, **changes)).ask(QUESTION).text)


def test_an_answer_comes_with_what_it_took(server):
    answer = JudgeClient(judge(server, temperature=0.5, max_tokens=40)).ask(QUESTION)
    assert (answer.prompt_tokens, answer.completion_tokens) == TOKENS
    assert (answer.model, answer.max_tokens) == ("gpt-exactly", 40)
    assert read_ratings(answer.text) == (7, 4)
    (request,) = server.requests
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("gpt", 0.5, 40)
    assert request["response_format"]["json_schema"]["strict"] is True


def test_a_busy_server_is_given_the_time_it_asks_for(server):
    server.planned = [fails(429, Retry_After="1.3")]
    started = time.monotonic()
    assert asked(server) == (7, 4)
    assert 1.3 <= time.monotonic() - started < 4
    assert len(server.requests) == 2


@pytest.mark.parametrize("reply", [fails(500), fails(503), waits(1.5), breaks_off, breaks_off_unannounced])
def test_what_passes_is_waited_out(server, reply):
    server.planned = [reply]
    assert asked(server, timeout_seconds=0.5) == (7, 4)
    assert len(server.requests) == 2


@pytest.mark.parametrize("reply", [fails(500), fails(429, Retry_After="0.1"), waits(1.5), breaks_off])
def test_what_does_not_pass_may_be_tried_again_later(server, reply):
    server.planned = [reply] * 3
    with pytest.raises(EndpointError, match="does not answer"):
        asked(server, timeout_seconds=0.3)
    assert len(server.requests) == 3


def test_nobody_at_the_address_may_be_tried_again_later(server):
    with serving(judge_server.Endpoint()) as other:
        gone = other.base_url
    with pytest.raises(EndpointError, match=f"{gone} does not answer: Connection error"):
        asked(server, base_url=gone)


def test_what_is_no_chat_completion_is_named(server):
    for value in ({"error": "overloaded"}, {"choices": [{}]}, "Welcome"):
        server.planned.append(lambda handler, _, value=value: handler.send(200, value))
    with pytest.raises(EndpointError, match="not with a chat completion"):
        asked(server)


@pytest.mark.parametrize("status", [402, 403, 404])
def test_what_no_retry_helps_ends_at_once(server, status):
    server.planned = [fails(status)] * 3
    with pytest.raises(StageError, match=f"refuses gpt: .*status {status}"):
        asked(server)
    assert len(server.requests) == 1


def test_an_account_without_credit_is_bad_input(server):
    body = {"error": {"message": "no credit", "code": "insufficient_quota"}}
    server.planned = [lambda handler, _: handler.send(429, body, Retry_After="0.1")] * 3
    with pytest.raises(StageError, match="no credit"):
        asked(server)


def test_a_wrong_path_and_a_wrong_key_are_named(server, monkeypatch):
    with pytest.raises(StageError, match="no such page"):
        asked(server, base_url=server.base_url + "/nowhere")
    monkeypatch.setenv("OTHER_KEY", "sk-another-secret")
    with pytest.raises(StageError, match=r"does not know the key in OTHER_KEY \(401\)") as refusal:
        asked(server, api_key_variable="OTHER_KEY")
    assert "another-secret" not in str(refusal.value)
    monkeypatch.delenv("OTHER_KEY")
    with pytest.raises(StageError, match="has no OTHER_KEY"):
        asked(server, api_key_variable="OTHER_KEY")


def test_a_key_that_the_server_repeats_goes_no_further(server):
    server.planned = [lambda handler, _: handler.send(403, {"error": {"message": f"not for {KEY}"}})]
    with pytest.raises(StageError, match=r"not for \*\*\*") as refusal:
        asked(server)
    assert KEY not in str(refusal.value)
    server.planned = [says(f"your key is {KEY}")]
    assert KEY not in JudgeClient(judge(server)).ask(QUESTION).text


def test_an_endpoint_without_structured_output_is_asked_without(server):
    server.structured, server.limit_name = False, "max_completion_tokens"
    endpoint = JudgeClient(judge(server))
    assert read_ratings(endpoint.ask(QUESTION).text) == (7, 4)
    assert len(server.requests) == 4, "each form once"
    assert read_ratings(endpoint.ask(QUESTION).text) == (7, 4)
    assert len(server.requests) == 5, "then the one that it takes"
    assert "response_format" not in server.requests[-1]
    assert server.requests[-1]["max_completion_tokens"] == 256


def test_a_question_refused_in_every_form_says_why(server):
    server.planned = [fails(400)] * 3 + [fails(422)]
    with pytest.raises(RefusedError, match=r"status 400.*; .*status 422"):
        asked(server)


def test_an_answer_without_usage_is_estimated(server):
    def reply(handler: judge_server.Handler, body: dict[str, Any]) -> None:
        handler.send(200, {"choices": judge_server.completion(body, "abcdef")["choices"]})

    server.planned = [reply]
    answer = JudgeClient(judge(server)).ask(QUESTION)
    assert answer.completion_tokens == 2  # six bytes, three per token
    assert answer.prompt_tokens == -(-len(QUESTION) // 3)
    assert answer.model == "gpt"


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (ratings(7, 10), (7, 10)),
        ('{"assistant_1":1,\n "assistant_2":10}\n', (1, 10)),
        ("```json\n" + ratings(3, 4) + "\n```", (3, 4)),
        ("I'd say 7", None),
        ("7 8", None),
        ("Here you are: " + ratings(7, 8), None),
        (ratings(7, 8) + " because", None),
        (ratings(0, 8), None),
        (ratings(7, 11), None),
        (ratings(7.5, 8), None),
        (ratings(True, 8), None),
        (ratings("7", 8), None),
        ('{"assistant_1": 7}', None),
        ('{"assistant_1": 7, "assistant_2": 8, "assistant_3": 9}', None),
        ('{"assistant_1": 7, "assistant_', None),
        ("", None),
    ],
)
def test_ratings_are_read_strictly(answer, read):
    assert read_ratings(answer) == read
