"""Benchmarks of conversations: their turns, the model's own answers between, and their scores."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from minillm.config import Benchmark, Fields, Scoring, Source, Template
from minillm.data.benchmarks import load_benchmarks
from minillm.data.chat import ChatTemplate
from minillm.data.encoding import load_prompts
from minillm.data.turns import turns_of
from minillm.errors import StageError
from minillm.evaluation.uncertainty import prompt_values
from minillm.generation.answering import make_requests
from minillm.generation.conversing import load_conversations
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.stages.measuring import Score
from minillm.stages.reading import Benchmarks, EncodedPrompts
from tests.minillm.direct import alone, generation, read_lines, run_stage, write_lines
from tests.minillm.models_in_small import small_model
from tests.minillm.templates import INSTRUCTIONS, TURNS, save_chat_tokenizer

BENCH = [
    {"turns": ["Rome?", "And warm?"], "reference": ["It is sunny.", "21 degrees."], "category": "math"},
    {"turns": ["Thank you!"], "reference": ["You are welcome."], "category": "math"},
    {"turns": ["Be brief.", "Briefer.", "Stop."], "reference": [None, ["Yes.", "Ok."], ""], "category": "art"},
]
TOLD = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": "Sunny."},
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "21 degrees."},
    ]
}


def read(folder: Path, rows: list[dict[str, Any]], topics: tuple[str, ...] = (), **prompts: int) -> Path:
    """Read rows as a benchmark; return the folder."""
    stage = Benchmarks(
        fields={"talk": Fields()},
        topics={"talk": topics} if topics else {},
        prompts=prompts,
        scoring={"talk": Scoring()},
    )
    return run_stage(stage, {"benchmark/talk": write_lines(folder / "talk.jsonl", rows)}, folder / "read")[0]


def encode(folder: Path, benchmarks: Path, limit: int = 400, form: str = TURNS, **settings: Any) -> Path:
    """Encode the prompts; return the folder. The tokenizer is in `tokenizer`."""
    tokenizer = save_chat_tokenizer(folder / "tokenizer", form)
    fields = {"template": Template(), "max_prompt_tokens": limit, "long_prompts": "refuse", "answer_tokens": 6}
    inputs = {"tokenizer": tokenizer, "benchmarks": benchmarks}
    return run_stage(EncodedPrompts.model_validate(fields | settings), inputs, folder / "prompts")[0]


def test_each_turn_is_a_row_with_its_references_and_what_came_before(tmp_path):
    rows = load_benchmarks(read(tmp_path, BENCH))["talk"]
    assert [(row["index"], row["conversation"], row["turn"], row["references"]) for row in rows] == [
        (0, 0, 0, ["It is sunny."]),
        (1, 0, 1, ["21 degrees."]),
        (2, 1, 0, ["You are welcome."]),
        (3, 2, 0, []),
        (4, 2, 1, ["Yes.", "Ok."]),
        (5, 2, 2, []),
    ]
    assert [row["context"] for row in rows] == [
        "",
        "user: Rome?",
        "",
        "",
        "user: Be brief.",
        "user: Be brief.\n\nuser: Briefer.",
    ]
    assert [row["index"] for row in load_benchmarks(read(tmp_path / "art", BENCH, ("art",)))["talk"]] == [0, 1, 2]


def test_some_conversations_are_kept_with_all_their_turns(tmp_path):
    rows = load_benchmarks(read(tmp_path, [BENCH[1], BENCH[0], BENCH[2]], talk=2))["talk"]
    assert [(row["index"], row["conversation"], row["turn"]) for row in rows] == [(0, 0, 0), (1, 1, 0), (2, 1, 1)]


def test_a_conversation_is_parted_at_its_answers_and_keeps_system_and_tools(tmp_path):
    first, second = load_benchmarks(read(tmp_path, [TOLD]))["talk"]
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert (first["references"], second["references"]) == (["Sunny."], ["21 degrees."])
    assert first["context"] == "system: Be brief."


def test_answers_that_a_prompt_gives_are_no_references(tmp_path):
    (row,) = load_benchmarks(
        read(tmp_path, [{"prompt": TOLD["messages"][:4], "completion": [{"role": "assistant", "content": "Yes."}]}])
    )["talk"]
    assert row["messages"] == TOLD["messages"][:4]
    assert (row["turn"], row["instruction"], row["references"]) == (0, "Really?", ["Yes."])


def test_fields_that_are_named_are_read_whatever_others_there_are():
    row = {"prompt": "p", "completion": "c", "turns": ["t"], "reference": ["r"], "talk": ["u"]}
    assert turns_of(row, Fields(instruction="prompt", references="completion")) is None
    assert turns_of({**row, "turns": None, "instruction": "i"}, Fields(references="completion")) is None
    for fields, said in ((Fields(), "t"), (Fields(references="reference"), "t"), (Fields(turns="talk"), "u")):
        found = turns_of(row, fields)
        assert found is not None
        assert [(turn.said[0]["content"], turn.references) for turn in found[0]] == [(said, ["r"])]
    assert turns_of({"instruction": "i", "output": "o", "turns": None, "messages": None}, Fields()) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": []}, r":1: `turns` is no list of texts"),
        ({"turns": ["a", " "]}, r":1: `turns` is no list of texts"),
        ({"turns": ["a", "b"], "reference": ["x"]}, r":1: `reference` does not fit the 2 texts of `turns`"),
        ({"turns": ["a"], "reference": [3]}, r":1: `reference` has something other than text"),
        ({"turns": ["a", "b"]}, r"conversation 0, counted from 0, has no reference for any turn.*talk\.topics"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, r":1: no message to answer"),
        ({"messages": TOLD["messages"][:5]}, r":1: it ends with a call of a tool, which cannot be scored; end it with"),
    ],
)
def test_conversations_that_cannot_be_scored_are_refused(tmp_path, row, message):
    with pytest.raises(StageError, match=message):
        read(tmp_path, [row])


def test_rows_of_two_kinds_and_references_that_are_not_seen_are_refused(tmp_path):
    with pytest.raises(StageError, match="make them two files"):
        read(tmp_path, [BENCH[1], {"instruction": "i", "output": "o"}])
    with pytest.raises(StageError, match=r"benchmark talk: rouge_l sees nothing of 1 of 1 references"):
        read(tmp_path / "other", [{"turns": ["a", "b"], "reference": "東京"}])


def test_prompts_must_fit_whatever_is_answered_and_need_a_chat_template(tmp_path):
    benchmarks = read(tmp_path, BENCH[:1])
    gold = load_prompts(encode(tmp_path / "gold", benchmarks))["talk"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gold" / "tokenizer")
    begun = "<|start|>user\nRome?<|end|>\n<|start|>assistant\n"
    assert tokenizer.decode(gold[0]) == begun
    assert (
        tokenizer.decode(gold[1])
        == f"{begun}It is sunny.<|end|>\n<|start|>user\nAnd warm?<|end|>\n<|start|>assistant\n"
    )
    empty = ChatTemplate(tokenizer, [0]).prompt(
        [
            {"role": role, "content": text}
            for role, text in (("user", "Rome?"), ("assistant", ""), ("user", "And warm?"))
        ]
    )[1]
    longest = len(empty) + 6
    encode(tmp_path / "fits", benchmarks, longest)
    with pytest.raises(
        StageError, match=rf"1 prompts may become longer than {longest - 1} .* turn 1 .* with {longest} if"
    ):
        encode(tmp_path / "long", benchmarks, longest - 1, long_prompts="cut")
    text = Template(with_context="{instruction}{context}", without_context="{instruction}")
    with pytest.raises(StageError, match="benchmark talk has conversations, which only a chat template can render"):
        encode(tmp_path / "text", benchmarks, template=text)
    with pytest.raises(StageError, match="benchmark talk, conversation 0: the chat template refuses it: only user and"):
        encode(tmp_path / "system", read(tmp_path / "told", [TOLD]), form=INSTRUCTIONS)


def test_references_that_make_a_prompt_too_long_are_refused(tmp_path):
    told = "It is sunny, and it will be sunny for as long as anybody can see."
    benchmarks = read(tmp_path, [{"turns": ["Rome?", "And warm?"], "reference": [told, "21 degrees."]}])
    whole = len(load_prompts(encode(tmp_path / "fits", benchmarks))["talk"][1])
    encode(tmp_path / "just", benchmarks, whole)
    with pytest.raises(StageError, match=rf"1 prompts may become longer than {whole - 1} tokens.* with {whole} if"):
        encode(tmp_path / "long", benchmarks, whole - 1)


def test_an_answer_that_makes_the_next_prompt_too_long_is_refused_and_nothing_is_cut(tmp_path):
    encoded = encode(tmp_path, read(tmp_path / "rows", BENCH[:1]), 60)
    tokenizer = load_shared_tokenizer(tmp_path / "tokenizer")
    (conversations,) = load_conversations(encoded, tokenizer).values()
    long = tokenizer.tokenizer("warm " * 60, add_special_tokens=False)["input_ids"]
    requests = make_requests(load_prompts(encoded)["talk"], generation(max_tokens=66, seeds=(10,)), 0)
    with pytest.raises(StageError, match=r"benchmark talk, prompt 1, has \d+ tokens .* above the 60 .*prompt_tokens"):
        conversations.answer(requests, lambda asked: [(long, False)] * len(asked))


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a benchmark, its prompts, and a small model's responses."""
    folder = tmp_path_factory.mktemp("turns")
    prompts = encode(folder, read(folder, BENCH))
    shared = load_shared_tokenizer(folder / "tokenizer")
    small_model("llama", vocabulary=shared.entries).save_pretrained(folder / "model")
    inputs = {"model": folder / "model", "tokenizer": folder / "tokenizer", "prompts": prompts}
    with alone():
        run_stage(generation(406), inputs, folder / "generate")
    return folder


def test_later_turns_are_asked_with_the_models_own_answers(answered):
    shared = load_shared_tokenizer(answered / "tokenizer")
    rows = pd.read_parquet(answered / "generate" / "output" / "talk.parquet")
    texts = {
        (row["index"], row["seed"]): row["response"]
        for row in read_lines(answered / "generate" / "output" / "talk.jsonl")
    }
    assert rows[["seed", "index"]].to_numpy().tolist() == [[seed, index] for seed in (10, 20) for index in range(6)]
    assert rows["turn"].tolist() == [0, 1, 0, 0, 1, 2] * 2
    assert max(map(len, rows["response_ids"])) <= 6
    template = ChatTemplate(shared.tokenizer, shared.ends)
    for row in rows.to_dict("records"):
        index, turn, seed = row["index"], row["turn"], row["seed"]
        said = next(of["turns"] for of, first in zip(BENCH, (0, 2, 3), strict=True) if first == index - turn)
        told = [{"role": "user", "content": said[0]}]
        for before in range(turn):
            told += [
                {"role": "assistant", "content": texts[index - turn + before, seed].replace("\ufdd0", "\ufffd")},
                {"role": "user", "content": said[before + 1]},
            ]
        assert row["prompt_ids"].tolist() == template.prompt(told)[1]
    assert texts[0, 10] != texts[0, 20], "each seed has answers of its own before the second turn"


def test_a_conversation_counts_once(answered, tmp_path):
    folder = tmp_path / "responses"
    right = {0: "It is sunny.", 1: "no", 2: "You are welcome.", 3: "no", 4: "ok", 5: "no"}
    rows = [{"index": i, "seed": 10, "response": text, "tokens": 1, "finished": i < 3} for i, text in right.items()]
    write_lines(folder / "talk.jsonl", rows)
    benchmark = Benchmark(source=Source(path="unused"), metric="exact_match")
    stage = Score(role="sft", seeds=(10,), benchmarks={"talk": benchmark})
    inputs = {"responses": folder, "benchmarks": answered / "read" / "output", "tokenizer": answered / "tokenizer"}
    output, summary = run_stage(stage, inputs, tmp_path / "score")
    assert summary["exact_match/talk"] == pytest.approx(100 * (0.5 + 1 + 1) / 3)
    scores = pd.read_parquet(output / "scores.parquet")
    assert scores["index"].tolist() == [0, 1, 2, 4], "a turn without a reference is not scored"
    assert prompt_values(scores)["talk"].tolist() == [50.0, 100.0, 100.0]
    assert prompt_values(scores.drop(columns="conversation"))["talk"].tolist() == [100.0, 0.0, 100.0, 100.0]
    assert summary["finished/talk"] == 75.0
