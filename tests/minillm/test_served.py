"""A teacher behind a real HTTP server around one of our models: what it tells, what it costs, and how it fails."""

import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from minillm.config import ServedTeacher, Template, Top
from minillm.config.data import Turns
from minillm.data.encoding import encode_texts
from minillm.endpoints import client
from minillm.errors import StageError
from minillm.knowledge.store import KnowledgeStore
from minillm.models.batches import Limit
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.served.chat import Chat, RemoteModel, Said
from minillm.served.rounds import ServedRounds
from minillm.stages.reading import Filter
from minillm.stages.served import AskAnswers, AskKnowledge, AskResponses, CheckTeacher
from minillm.stages.training import StoreKnowledge
from minillm.store.artifacts import Store
from tests import judge_server
from tests.judge_server import KEY, breaks_off, breaks_off_unannounced, fails, serving, waits
from tests.minillm.direct import alone, encode, generation, read_lines, run_stage, write_lines
from tests.minillm.jobs import worker_command, worker_environment, write_job
from tests.minillm.models_in_small import small_model
from tests.minillm.on_policy import rollout_feed
from tests.minillm.templates import TURNS, save_chat_tokenizer
from tests.teacher_server import TeacherServer
from tests.waiting import wait_for

LONG = "It is sunny in Rome. " * 12
"""More than 200 characters."""
SAID = {
    "row 0": {"text": "It is sunny."},
    "row 1": {"text": "I'm sorry, but I cannot help with that."},
    "row 2": {"text": "  "},
    "row 3": {"text": LONG},
    "row 4": {"text": LONG + "\n"},
    "row 5": {"text": "It is", "finish": "length"},
    "row 6": {"text": None},
    "row 7": {"text": None, "finish": "content_filter"},
    "row 8": {"text": "It is sunny."},
    "row 9": {"text": "0123456789" * 30},
}
"""What the server says to each row; the two that are kept are 0 and 8, and the first long one."""
KEPT = ["row 0", "row 3", "row 8"]
TALK = [
    {"role": "user", "content": "Be brief."},
    {"role": "assistant", "content": "I am."},
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": "It is sunny."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tokenizer, a model, rows to train on, and a benchmark."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = save_chat_tokenizer(folder / "tokenizer", TURNS)
    entries = load_shared_tokenizer(tokenizer).entries
    small_model("gpt2", vocabulary=entries, seed=3).save_pretrained(folder / "model")
    question = {"index": 0, "instruction": "Is it 21 degrees?", "context": "", "references": ["sunny"], "topic": ""}
    write_lines(folder / "benchmarks" / "weather.jsonl", [question, {**question, "index": 1, "instruction": "Rome?"}])
    rows = [{"instruction": name, "response": "assistant user weather"} for name in SAID]
    sets: tuple[tuple[str, list[Any], Turns], ...] = (("rows", rows, "last"), ("talks", [{"messages": TALK}], "all"))
    for name, of, turns in sets:
        parts = [{"row": number, "split": "train" if number < len(of) else "dev"} for number in range(len(of) + 1)]
        held_out = {"messages": [{"role": "user", "content": "Thank you!"}, TALK[3]]}
        last = {"instruction": "held out", "response": "yes"} if name == "rows" else held_out
        inputs = {
            "instructions": write_lines(folder / f"{name}.jsonl", [*of, last]),
            "split": write_lines(folder / f"{name}-split.jsonl", parts),
            "tokenizer": tokenizer,
            "benchmarks": folder / "benchmarks",
        }
        limits = {"max_prompt_tokens": 120, "max_tokens": 240, "max_malformed_share": 0.0}
        stage = Filter(template=Template(), turns=turns, validation_size=None, test_size=None, seed=None, **limits)
        run_stage(stage, inputs, folder / f"filter-{name}")
    return folder


@pytest.fixture(params=["vllm"])
def server(
    request: pytest.FixtureRequest, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TeacherServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(client, "RETRIES", 2)
    monkeypatch.chdir(tmp_path)  # where the store is
    with serving(TeacherServer(folder / "model", folder / "tokenizer", request.param)) as running:
        running.said = SAID
        yield running


def endpoint(server: judge_server.Endpoint, **changes: Any) -> ServedTeacher:
    facts = {"base_url": server.base_url, "model": "teacher", "max_requests": 100}
    return ServedTeacher.model_validate({**facts, **changes})


def inputs_of(folder: Path, name: str = "rows") -> dict[str, Path]:
    return {
        "model": folder / "model",
        "tokenizer": folder / "tokenizer",
        "examples": folder / f"filter-{name}" / "output",
    }


def respond(server: TeacherServer, folder: Path, name: str = "rows", **changes: Any) -> tuple[Path, dict]:
    stage = AskResponses(endpoint=endpoint(server, **changes), template=Template(), max_tokens=240, seed=1)
    inputs = {**inputs_of(folder, name), "instructions": folder / f"{name}.jsonl"}
    number = len(list(Path().glob("respond-*")))
    return run_stage(stage, inputs, Path(f"respond-{number}").absolute())


def test_responses_are_filtered_and_what_is_dropped_is_counted(server, folder, capsys):
    output, summary = respond(server, folder)
    rows = pd.read_parquet(output / "responses.parquet")
    examples = pd.read_parquet(folder / "filter-rows" / "output" / "train.parquet").set_index("row")
    shared = load_shared_tokenizer(folder / "tokenizer")
    end = shared.tokenizer.convert_tokens_to_ids("<|end|>")
    assert rows["row"].tolist() == [int(name.split()[1]) for name in KEPT]
    for name, row in zip(KEPT, rows.to_dict("records"), strict=True):
        answer = [*encode_texts(shared.tokenizer, [str(SAID[name]["text"])])[0], end]
        assert row["response_ids"].tolist() == answer
        assert row["prompt_ids"].tolist() == examples.loc[row["row"], "prompt_ids"].tolist()
        assert [(turn["start"], turn["end"]) for turn in row["turns"]] == [(0, len(answer))]
    dropped = {name.removeprefix("dropped/"): count for name, count in summary.items() if name.startswith("dropped/")}
    assert dropped == {
        "refusal": 1, "empty": 1, "duplicate": 1, "cut by the length limit": 1, "malformed": 1,
        "refused by the endpoint": 1, "longer than data.max_tokens": 1,
    }  # fmt: skip
    assert pd.read_csv(output / "dropped.csv")["row"].tolist() == [1, 2, 4, 5, 6, 7, 9]
    assert summary["questions"] == len(server.requests) == 10 + 2, "the malformed one is asked three times"
    assert summary["prompt_tokens"] == 12 * 10
    said = capsys.readouterr().out
    assert "teacher teacher: 10 questions, 0 of them settled already; to ask: 10, an estimated" in said
    assert "asked 12 questions: 120 prompt tokens and 60 completion tokens; 0 refused" in said
    assert "dropped 1 response: refusal" in said


def test_the_model_itself_may_answer_and_is_asked_what_the_row_says(server, folder):
    server.said = {}
    output, _ = respond(server, folder, refusals=(), duplicate_characters=None)
    rows = pd.read_parquet(output / "responses.parquet").to_dict("records")
    texts = {row["row"]: row["turns"][0]["text"] for row in rows}
    assert texts
    for row, text in texts.items():
        written, finish = server.write(server.shared.tokenizer(f"row {row}")["input_ids"], 240)
        assert finish == "stop"
        assert text == written
    assert {body["temperature"] for body in server.requests} == {1.0}
    assert {body["seed"] for body in server.requests} == {1}


def test_an_answer_is_used_again_where_the_present_limit_would_have_given_it(server, tmp_path):
    server.said = {"Say.": {"text": "One, two."}}  # of five tokens, as the server counts
    model = RemoteModel(endpoint(server), str(tmp_path))

    def asked(limit: int) -> list[int]:
        before = len(server.requests)
        (said,) = model.say([Chat([{"role": "user", "content": "Say."}], limit, seed=1)], lambda _: None)
        assert isinstance(said, Said)
        return [body["max_tokens"] for body in server.requests[before:]]

    assert [asked(limit) for limit in (8, 8, 6, 4, 4, 8)] == [[8], [], [], [4], [], []]


def test_each_answer_of_a_conversation_is_asked_for_after_what_was_said(server, folder):
    server.said = {"Be brief.": {"text": "Yes."}, "What is the weather?": {"text": "Rome is sunny."}}
    output, summary = respond(server, folder, "talks")
    asked = [body["messages"] for body in server.requests]
    assert sorted(asked, key=len) == [TALK[:1], TALK[:3]]
    rows = pd.read_parquet(output / "responses.parquet")
    assert [[turn["text"] for turn in turns] for turns in rows["turns"]] == [["Yes."], ["Rome is sunny."]]
    assert summary["responses"] == 2


def test_answers_to_benchmarks_are_stored_as_those_of_other_models(server, folder, tmp_path):
    template = Template()
    prompts = encode(tmp_path / "prompts", folder / "tokenizer", folder / "benchmarks", 120, template)
    server.said = {"Is it 21 degrees?": {"text": "Yes."}, "Rome?": {"text": "It is sunny."}}
    stage = AskAnswers(endpoint=endpoint(server), system="Be brief.", generate=generation(200, seeds=(10, 20)))
    inputs = {**inputs_of(folder), "prompts": prompts, "benchmarks": folder / "benchmarks"}
    output, summary = run_stage(stage, {name: inputs[name] for name in stage.inputs}, tmp_path / "answers")
    lines = read_lines(output / "weather.jsonl")
    assert [(line["index"], line["seed"], line["response"]) for line in lines] == [
        (index, seed, text) for seed in (10, 20) for index, text in enumerate(("Yes.", "It is sunny."))
    ]
    assert all(line["finished"] for line in lines)
    table = pd.read_parquet(output / "weather.parquet")
    assert table["response_ids"].map(len).tolist() == [line["tokens"] for line in lines]
    assert {body["seed"] for body in server.requests} == {10, 20}
    assert {body["messages"][0]["content"] for body in server.requests} == {"Be brief."}
    assert (summary["responses"], summary["unanswered/weather"]) == (4, 0)


def store(stage: Any, folder: Path, inputs: dict[str, Path]) -> Path:
    with alone():
        return run_stage(stage, inputs, folder)[0]


@pytest.mark.parametrize(
    ("server", "name"), [("vllm", "rows"), ("strings", "rows"), ("text", "talks")], indirect=["server"]
)
def test_the_store_is_the_one_that_weights_make(server, folder, tmp_path, name):
    inputs = inputs_of(folder, name)
    output = store(AskKnowledge(endpoint=endpoint(server), k=7), tmp_path / "asked", inputs)
    weights = store(StoreKnowledge(top=Top(k=7), precision="float32"), tmp_path / "kept", inputs)
    asked, kept = (load_file(of / "shard-00000.safetensors") for of in (output, weights))
    assert asked.keys() == kept.keys()
    torch.testing.assert_close(asked["token_log_prob"], kept["token_log_prob"], atol=1e-4, rtol=0)
    assert asked["token_ends"].tolist() == kept["token_ends"].tolist()
    index = [KnowledgeStore(of, "top", None).index for of in (output, weights)]
    assert index[0] == index[1], "the teacher's files are the same here; a flow has teacher.json in their place"
    theirs, ours = (tokens_of(of) for of in (asked, kept))
    if server.kind == "vllm":
        assert [list(of) for of in theirs] == [list(of) for of in ours]
        torch.testing.assert_close(asked["log_probs"].float(), kept["log_probs"].float(), atol=4e-3, rtol=0)
        torch.testing.assert_close(asked["tail"], kept["tail"], atol=1e-5, rtol=0)
    else:  # strings that stand for several tokens are left out, but for the text's own tokens
        several = [set(ours[place]) - set(theirs[place]) for place in range(len(ours))]
        assert 0 < sum(map(len, several)) < 7 * len(ours)
        spelled = {token: server.spelled(token) for tokens in several for token in tokens}
        assert all("\N{REPLACEMENT CHARACTER}" in text or not text for text in spelled.values())
        for mine, other in zip(ours, theirs, strict=True):
            assert all(abs(mine[token] - other[token]) < 4e-3 for token in mine.keys() & other.keys())


def tokens_of(shard: dict[str, torch.Tensor]) -> list[dict[int, float]]:
    counts = shard["counts"].tolist()
    entries, logs = shard["entries"].int().split(counts), shard["log_probs"].float().split(counts)
    return [dict(zip(of.tolist(), log.tolist(), strict=True)) for of, log in zip(entries, logs, strict=True)]


@pytest.mark.parametrize("server", ["vllm", "strings", "text"], indirect=True)
def test_the_check_takes_what_tells_our_tokens(server, folder, tmp_path):
    stage = CheckTeacher(endpoint=endpoint(server), template=Template(), log_probs=5)
    output, summary = run_stage(stage, {"tokenizer": folder / "tokenizer"}, tmp_path / "check")
    assert '"model": "teacher"' in (output / "teacher.json").read_text(encoding="utf-8")
    assert summary["questions"] == 3


def refusal(server: TeacherServer, folder: Path, tokenizer: Path | None = None) -> str:
    stage = CheckTeacher(endpoint=endpoint(server), template=Template(), log_probs=5)
    with pytest.raises(StageError) as error:
        run_stage(stage, {"tokenizer": tokenizer or folder / "tokenizer"}, Path("check").absolute())
    return str(error.value)


def test_a_server_that_is_not_there_is_said_at_once(server, folder, tmp_path):
    nobody = endpoint(server, base_url="http://127.0.0.1:9/v1")
    stage = CheckTeacher(endpoint=nobody, template=Template(), log_probs=None)
    with pytest.raises(StageError, match=r":9/v1 does not answer: Connection error\. Start its server, or see"):
        run_stage(stage, {"tokenizer": folder / "tokenizer"}, tmp_path / "check")


@pytest.mark.parametrize("server", ["strings"], indirect=True)
def test_another_tokenizer_is_refused_at_its_first_difference(server, folder, tmp_path):
    save_chat_tokenizer(tmp_path / "other", TURNS)
    made = json.loads((tmp_path / "other" / "tokenizer.json").read_text(encoding="utf-8"))
    ids = made["model"]["vocab"]
    ids["R"], ids["N"] = ids["N"], ids["R"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    assert "is 'N' in tokenizer.from, and 'R' at the endpoint" in refusal(server, folder, tmp_path / "other")


def test_places_that_are_off_are_refused(server, folder):
    server.off_by = 1
    assert "the server's places are off" in refusal(server, folder)


def test_a_server_that_tells_fewer_tokens_than_are_asked_for_is_refused(server, folder):
    answer = server.complete
    server.complete = lambda body: answer({**body, "logprobs": 2})
    assert "tells 3 likely tokens of a place in given text, and 5 were asked for; let it tell more" in refusal(
        server, folder
    )


def test_the_check_is_paid_for_like_any_question(server, folder, tmp_path):
    inputs = {"tokenizer": folder / "tokenizer"}
    stage = CheckTeacher(endpoint=endpoint(server, max_requests=2), template=Template(), log_probs=5)
    with pytest.raises(StageError, match=r"max_requests is 2, but with what the store has paid for, 3 may be needed"):
        run_stage(stage, inputs, tmp_path / "few")
    assert paid(Path(".minillm")) == len(server.requests) == 2
    run_stage(stage.model_copy(update={"endpoint": endpoint(server)}), inputs, tmp_path / "enough")
    assert paid(Path(".minillm")) == len(server.requests) == 4, (
        "the chat question is known; what is probed is asked anew"
    )


def test_an_endpoint_without_log_probabilities_is_refused(server, folder):
    server.complete = lambda body: {"choices": [{"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}]}
    assert "answers without log-probabilities of all tokens of given text; use a method" in refusal(server, folder)
    server.planned = [fails(400)] * 6  # three forms, each tried before it is asked in earnest
    Path("check").rename("before")
    assert "takes no text to tell log-probabilities of" in refusal(server, folder)


@pytest.mark.parametrize("server", ["strings"], indirect=True)
def test_a_row_whose_tokens_are_read_otherwise_is_refused_by_name(server, folder, tmp_path):
    answer = server.complete

    def one_lost(body: dict[str, Any]) -> dict[str, Any]:
        reply = answer(body)
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            del reply["choices"][0]["logprobs"][name][9]
        return reply

    server.complete = one_lost
    with pytest.raises(StageError, match=r"token 9 of training row \d is '.*' in tokenizer.from, and"):
        store(AskKnowledge(endpoint=endpoint(server), k=3), tmp_path / "asked", inputs_of(folder))
    assert paid(Path(".minillm")) == len(server.requests) > 0


def other(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    """Return a change of a field of a choice's log-probabilities, or of vLLM's."""

    def apply(choice: dict[str, Any]) -> None:
        fields = choice if name == "prompt_logprobs" else choice["logprobs"]
        fields[name] = change(fields[name])

    return apply


MALFORMED: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("strings", other("top_logprobs", lambda _: None)),
    ("strings", other("token_logprobs", lambda _: None)),
    ("strings", other("token_logprobs", lambda told: told[:3])),
    ("strings", other("token_logprobs", lambda told: [*told[:-2], None, None])),
    ("strings", other("token_logprobs", lambda told: [*told[:-2], float("nan"), None])),
    ("strings", lambda choice: choice.update(logprobs=[])),
    ("vllm", other("prompt_logprobs", lambda told: [*told[:-1], {"1": {}}])),
    ("vllm", other("prompt_logprobs", lambda told: [*told[:-1], {"1": -0.5}])),
    ("vllm", other("prompt_logprobs", lambda told: [*told[:-1], None])),
    ("vllm", other("prompt_logprobs", lambda _: 7)),
    ("vllm", lambda choice: choice.update(logprobs=None, prompt_logprobs=None)),
]


@pytest.mark.parametrize(("server", "change"), MALFORMED, indirect=["server"])
def test_malformed_log_probabilities_are_paid_for_and_asked_for_again(server, folder, tmp_path, change):
    answer, left, inputs = server.complete, [change] * 2, inputs_of(folder, "talks")

    def malformed(body: dict[str, Any]) -> dict[str, Any]:
        reply = answer(body)
        if left:
            left.pop()(reply["choices"][0])
        return reply

    server.complete = malformed
    with alone():
        _, summary = run_stage(AskKnowledge(endpoint=endpoint(server), k=3), inputs, tmp_path / "asked")
    assert summary["questions"] == len(server.requests) == paid(Path(".minillm")) == 3
    left += [change] * 3
    other_model = AskKnowledge(endpoint=endpoint(server, model="other"), k=3)
    with pytest.raises(StageError, match="not tell the log-probabilities of all tokens of training row 0, asked 3 t"):
        store(other_model, tmp_path / "never", inputs)


def test_what_a_server_does_not_count_is_estimated_from_the_text_alone(server, folder, tmp_path):
    answer = server.complete
    server.complete = lambda body: {**answer(body), "usage": None}
    with alone():
        asked = AskKnowledge(endpoint=endpoint(server), k=3)
        _, summary = run_stage(asked, inputs_of(folder, "talks"), tmp_path / "asked")
    (text,) = (server.shared.tokenizer.decode(body["prompt"]) for body in server.requests)
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (-(-len(text.encode()) // 3), 1)


@pytest.mark.parametrize("reply", [fails(429, Retry_After="0.1"), waits(1.5), breaks_off, breaks_off_unannounced])
def test_log_probabilities_that_come_late_or_in_part_are_asked_for_again(server, folder, tmp_path, reply):
    passes = [lambda handler, body: handler.reply(body, None)] * 4
    server.planned = [*passes, reply, *passes, reply]
    with alone():
        stage = AskKnowledge(endpoint=endpoint(server, timeout_seconds=0.7, parallel=2), k=3)
        output, summary = run_stage(stage, inputs_of(folder), tmp_path / "asked")
    assert (summary["questions"], len(server.requests)) == (10, 12)
    assert summary["entries_per_token"] == 3
    assert KnowledgeStore(output, "top", None).index.starts[-1] == 10


def goes_away(handler: Any, _: dict[str, Any]) -> None:
    """End the server in the middle of a reply, and start it again on the same port after a while."""
    server, address = handler.server, handler.server.server_address
    server.shutdown()
    server.server_close()
    handler.close_connection = True

    def come_back() -> None:
        time.sleep(1)
        server.socket = socket.create_server(address)
        server.serve_forever(poll_interval=0.02)

    threading.Thread(target=come_back).start()


@pytest.mark.parametrize("stage", [AskResponses, AskKnowledge])
def test_a_server_that_comes_back_is_waited_for(server, folder, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(client, "RETRIES", 8)
    server.planned = [lambda handler, body: handler.reply(body, None)] * 4 + [goes_away]
    if stage is AskResponses:
        _, summary = respond(server, folder, parallel=1, attempts=1)
    else:
        with alone():
            asked = AskKnowledge(endpoint=endpoint(server, parallel=1), k=3)
            _, summary = run_stage(asked, inputs_of(folder), tmp_path / "asked")
    assert summary["questions"] == len(server.answered) == 10
    assert len(server.requests) == 11
    assert set(server.answered.values()) == {1}


def test_more_than_the_budget_is_refused_before_anything_is_asked(server, folder, tmp_path):
    with pytest.raises(StageError, match=r"endpoint.max_requests is 9, but with what .* paid for, 10 may be needed"):
        respond(server, folder, max_requests=9)
    assert server.requests == []
    money = {"prices": {"prompt": 0.0, "completion": 1e6}, "max_cost": 9.0}
    knowledge = AskKnowledge(endpoint=endpoint(server, **money), k=3)
    with pytest.raises(StageError, match=r"endpoint.max_cost is 9.0, but with what .* paid for, 10 may be needed"):
        store(knowledge, tmp_path / "first", inputs_of(folder))  # a token each
    assert server.requests == []
    store(knowledge.model_copy(update={"endpoint": endpoint(server)}), tmp_path / "paid", inputs_of(folder))
    store(knowledge, tmp_path / "again", inputs_of(folder))
    assert len(server.requests) == 10, "what is there costs nothing, whatever the budget"
    with pytest.raises(StageError, match=r"max_requests is 19, but with what .* paid for, 20 may be needed"):
        respond(server, folder, max_requests=19)


@pytest.mark.parametrize(
    "reply", [fails(429, Retry_After="0.1"), fails(500), waits(1.5), breaks_off, breaks_off_unannounced]
)
def test_what_passes_is_waited_out_and_paid_once(server, folder, reply):
    server.planned = [reply]
    _, summary = respond(server, folder, timeout_seconds=0.7, parallel=2)
    assert summary["responses"] == len(KEPT)
    assert summary["questions"] == 12


@pytest.mark.parametrize("planned", [[], [fails(429, Retry_After="0.01")] * 4])
def test_requests_keep_the_pace_that_is_set(server, folder, planned):
    server.planned = planned
    began = time.monotonic()
    respond(server, folder, requests_per_minute=600, parallel=12)
    assert time.monotonic() - began > (11 + len(planned)) * 0.1


@pytest.mark.parametrize(("server", "form"), [("vllm", (list, True)), ("text", (str, False))], indirect=["server"])
def test_a_busy_server_says_nothing_of_the_form_of_requests(server, folder, tmp_path, form: tuple[type, bool]):
    server.planned = [fails(429, Retry_After="0.01")] * 2
    store(AskKnowledge(endpoint=endpoint(server), k=3), tmp_path / "busy", inputs_of(folder, "talks"))
    forms = [(type(body["prompt"]), "prompt_logprobs" in body) for body in server.requests]
    assert forms[:3] == [(list, True)] * 3, "the best one, until it is answered"
    assert forms[-1] == form


def test_a_server_that_stays_busy_is_asked_in_no_other_form(server):
    server.planned = [fails(429, Retry_After="0.01")] * 40
    with pytest.raises(client.EndpointError, match="does not answer"):
        client.Client(endpoint(server)).complete([{"prompt": [1], "max_tokens": 1}, {"prompt": "one", "max_tokens": 1}])
    assert {type(body["prompt"]) for body in server.requests} == {list}


@pytest.mark.parametrize("server", ["vllm", "strings"], indirect=True)
def test_rollouts_are_scored_as_by_weights(server, folder, tmp_path):
    entries = server.shared.entries
    student, teacher = (small_model("gpt2", vocabulary=entries, seed=seed) for seed in (5, 3))
    store = Store(tmp_path / "store")
    store.work_directory("served_teacher", "t" * 64)
    (store.work_path("served_teacher", "t" * 64) / "output").mkdir(exist_ok=True)
    facts = {"summary": {}, "settings": {"endpoint": endpoint(server).model_dump(mode="json")}}
    checked = Path(store.complete("served_teacher", "t" * 64, facts).path)
    policy = {"rollouts": 8, "inner_epochs": 1, "teacher_mix": 0.0, "single_step": False, "credit": "token"}
    prompts = [[number + 10, 20, 30] for number in range(8)]
    found, figures = [], []
    with rollout_feed(student, teacher, prompts, 6, policy) as feed:
        for each in (feed.teacher, ServedRounds(checked, str(tmp_path / "store"), server.shared)):
            feed.teacher, feed.round = each, None
            figures.append(feed.prepare(0, Limit(rows=4)))
            sums = [compute() for compute in feed.losses(0, Limit(rows=4))]
            found.append({name: sum(float(of[name]) for of in sums) for name in sums[0]})
        assert feed.round is not None
        restored = feed.state()
        feed.restore([restored])
    assert figures[0].keys() - figures[1].keys() == {"teacher_entropy", "top_5_overlap"}
    assert found[0].keys() - found[1].keys() == {"reverse_kl"}
    for ours, theirs in (figures, found):
        assert theirs == pytest.approx({name: ours[name] for name in theirs}, abs=1e-4)
    assert abs(figures[0]["reward"]) > 0.1
    assert len(server.requests) == 8
    assert all(isinstance(body["prompt"], list) for body in server.requests)


@pytest.mark.parametrize("server", ["text"], indirect=True)
def test_rollouts_need_a_server_that_takes_token_ids(server, folder, tmp_path):
    stage = CheckTeacher(endpoint=endpoint(server), template=Template(), log_probs=1, by_ids=True)
    with pytest.raises(StageError, match="takes no token ids, which on_policy sends, to tell log-probabilities of"):
        run_stage(stage, {"tokenizer": folder / "tokenizer"}, tmp_path / "check")


def paid(folder: Path) -> int:
    """Return the number of answers in the store, as another process sees it."""
    for path in folder.glob("endpoints/*/answers.sqlite"):
        with contextlib.suppress(sqlite3.OperationalError):
            return sqlite3.connect(path).execute("SELECT COUNT(*) FROM answers").fetchone()[0]
    return 0


@pytest.mark.parametrize("stage", [AskResponses, AskKnowledge])
def test_a_worker_killed_in_the_middle_pays_for_nothing_twice(server, folder, tmp_path, stage):
    own: dict[str, Any] = {"template": Template(), "max_tokens": 240, "seed": 1} if stage is AskResponses else {"k": 3}
    settings = stage(endpoint=endpoint(server, parallel=2, attempts=1), **own)
    known = {**inputs_of(folder), "instructions": folder / "rows.jsonl"}
    inputs = {name.rstrip("?"): known[name.rstrip("?")] for name in settings.inputs if name != "responses?"}
    spec = write_job(tmp_path / "work", settings, inputs, store=str(tmp_path / "store"))
    answer = server.log_probs if stage is AskKnowledge else server.chat
    asked: list[int] = []

    def held(*arguments: Any) -> Any:
        asked.append(1)
        if len(asked) > 4:
            raise ConnectionError  # the server falls silent
        return answer(*arguments)

    setattr(server, answer.__name__, held)
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(worker_command(spec), env=worker_environment(), cwd=tmp_path, stdout=log, stderr=log)
        wait_for(lambda: paid(tmp_path / "store") >= 4 and len(asked) > 4, 60)
        worker.send_signal(signal.SIGKILL)
        worker.wait(30)
    setattr(server, answer.__name__, answer)
    again = subprocess.run(worker_command(spec), env=worker_environment(), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "10 questions, 4 of them settled already" in again.stdout
    assert set(server.answered.values()) == {1}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"answers.sqlite", "job.json", "summary.json", "log"} <= {path.name for path in files}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in again.stdout + again.stderr
