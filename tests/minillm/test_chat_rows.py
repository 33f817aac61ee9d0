"""Conversations through the filter: every format gives the same examples; what cannot be learnt is counted."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from minillm.config import Template
from minillm.config.data import RowFields
from minillm.data.chat import ChatTemplate
from minillm.data.conversations import Conversation
from minillm.data.examples import tokenise
from minillm.data.learnt_turns import prompts_of
from minillm.data.rows import Row
from minillm.data.tokenising import PIECE
from minillm.errors import StageError
from minillm.stages.reading import EncodedPrompts, Filter
from tests.minillm.direct import PLAIN, read_lines, run_stage, write_lines
from tests.minillm.templates import INSTRUCTIONS, THINKING, TURNS, chat_tokenizer, save_chat_tokenizer

COLOURS = ["red", "blue", "green", "black", "white", "grey"]
SIDES = {"user": "human", "assistant": "gpt"}


def talk(colour: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": f"Name a {colour} thing."},
        {"role": "assistant", "content": f"A {colour} hat."},
        {"role": "user", "content": f"Another {colour} one?"},
        {"role": "assistant", "content": f"A {colour} door."},
    ]


def sharegpt(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{"from": SIDES[message["role"]], "value": message["content"]} for message in messages]


FORMATS = {
    "messages": [{"messages": talk(colour), "category": "things"} for colour in COLOURS],
    "conversations": [{"conversations": sharegpt(talk(colour)), "category": "things"} for colour in COLOURS],
    "prompt and completion": [
        {"prompt": talk(colour)[:3], "completion": talk(colour)[3:], "category": "things"} for colour in COLOURS
    ],
}


def filtered(
    folder: Path,
    rows: list[dict[str, Any]],
    form: str = TURNS,
    benchmark: str = "Unrelated?",
    context: str = "",
    split: list[str] | None = None,
    **changes: Any,
) -> tuple[Path, dict[str, float | str]]:
    folder.mkdir(parents=True, exist_ok=True)
    benchmarks = folder / "benchmarks"
    benchmarks.mkdir()
    asked = {"index": 0, "instruction": benchmark, "context": context, "references": ["x"], "topic": ""}
    write_lines(benchmarks / "asked.jsonl", [asked])
    settings = {"template": Template(), "max_prompt_tokens": 200, "max_tokens": 400, "max_malformed_share": 0.5}
    sizes: dict[str, int | None] = {"validation_size": 1, "test_size": 1, "seed": 1}
    inputs = {
        "instructions": write_lines(folder / "rows.jsonl", rows),
        "tokenizer": save_chat_tokenizer(folder / "tokenizer", form),
        "benchmarks": benchmarks,
    }
    if split is not None:
        parts = [{"row": row, "split": part} for row, part in enumerate(split)]
        inputs["split"], sizes = write_lines(folder / "split.jsonl", parts), dict.fromkeys(sizes)
    return run_stage(Filter.model_validate({**settings, **sizes, **changes}), inputs, folder)


def examples(output: Path) -> pd.DataFrame:
    parts = [pd.read_parquet(output / f"{part}.parquet") for part in ("train", "validation", "test")]
    return pd.concat(parts).sort_values("row", ignore_index=True)


def test_each_format_gives_the_same_examples(tmp_path: Path):
    found = {}
    for number, (form, rows) in enumerate(FORMATS.items()):
        output, summary = filtered(tmp_path / str(number), rows)
        assert (summary["rows"], summary["malformed"], summary["dropped"]) == (6.0, 0.0, 0.0)
        found[form] = examples(output)
    first = found["messages"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "0" / "tokenizer")
    for other in found.values():
        pd.testing.assert_frame_equal(other, first)
    assert first["category"].unique().tolist() == ["things"]
    row = first.iloc[0]
    assert tokenizer.decode(row["response_ids"]) == "A red door.<|end|>"
    page = (tmp_path / "0" / "output" / "filtering.md").read_text(encoding="utf-8")
    assert "Format of the rows: messages." in page
    assert re.search(r"Prompt:\n\n    <\|start\|>user\n    Name a (\w+) thing\.<\|end\|>\n", page)
    assert re.search(r"Learnt:\n\n    A \w+ door\.\n\nEnd:\n\n    <\|end\|>\n", page)
    assert row["prompt"].endswith("<|start|>user\nAnother red one?<|end|>\n<|start|>assistant\n")
    wanted = tokenizer.apply_chat_template(talk("red")[:3], add_generation_prompt=True, return_dict=False)
    assert row["prompt_ids"].tolist() == wanted


def test_instructions_are_a_message_of_the_user_where_the_tokenizer_has_a_template(tmp_path: Path):
    rows = [{"instruction": f"Name a {c} thing.", "context": "Now.", "response": f"A {c} hat."} for c in COLOURS]
    output, _ = filtered(tmp_path, rows)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    message = [{"role": "user", "content": "Name a red thing.\n\nNow."}]
    row = examples(output).iloc[0]
    assert row["prompt_ids"].tolist() == tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(row["response_ids"]) == "A red hat.<|end|>"
    asked = write_lines(
        tmp_path / "benchmarks" / "asked.jsonl",
        [{"index": 0, "instruction": "Name a red thing.", "context": "Now.", "references": ["x"], "topic": ""}],
    )
    stage = EncodedPrompts(template=Template(), max_prompt_tokens=200, long_prompts="refuse", answer_tokens=4)
    prompts, _ = run_stage(
        stage, {"tokenizer": tmp_path / "tokenizer", "benchmarks": asked.parent}, tmp_path / "prompts"
    )
    assert pd.read_parquet(prompts / "asked.parquet")["prompt_ids"][0].tolist() == row["prompt_ids"].tolist()


def test_all_answers_are_learnt_and_each_is_a_prompt(tmp_path: Path):
    output, _ = filtered(tmp_path / "all", FORMATS["messages"], turns="all")
    last, _ = filtered(tmp_path / "last", FORMATS["messages"])
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "all" / "tokenizer")
    rows, prompts = examples(output), prompts_of(examples(output))
    assert prompts["response"].tolist() == [f"A {c} {thing}." for c in COLOURS for thing in ("hat", "door")]
    for number, (asked, answer) in enumerate(zip(prompts["prompt_ids"], prompts["response_ids"], strict=True)):
        told = talk(COLOURS[number // 2])[: 2 * (number % 2) + 1]
        assert list(asked) == tokenizer.apply_chat_template(told, add_generation_prompt=True, return_dict=False)
        assert tokenizer.decode(answer) == prompts["response"][number] + "<|end|>"
    assert prompts["place"].tolist() == [place for row in range(6) for place in ((row, 1), (row,))]
    of_last = prompts_of(examples(last))
    for column in ("row", "place", "response"):
        assert of_last[column].tolist() == prompts[column][1::2].tolist()
    assert rows["prompt"].tolist()[0] == "<|start|>user\nName a red thing.<|end|>\n<|start|>assistant\n"
    page = (output / "filtering.md").read_text(encoding="utf-8")
    assert re.search(r"Read:\n\n    \n    <\|start\|>user\n    Another \w+ one\?<\|end\|>\n", page)
    read, learnt = pd.read_csv(output / "lengths.csv").query("category == 'all'")["mean"].tolist()
    whole = sum(len(row["prompt_ids"]) + len(row["response_ids"]) for _, row in rows.iterrows()) / 6
    assert read + learnt == pytest.approx(whole, abs=0.11)
    assert learnt == pytest.approx(sum(map(len, prompts["response_ids"])) / 6, abs=0.06)


def test_an_answer_that_the_template_writes_otherwise_later_is_asked_for_by_itself(tmp_path: Path):
    thought = [
        [{**m, "content": f"<think>Hm.</think>{m['content']}"} if m["role"] == "assistant" else m for m in talk(colour)]
        for colour in COLOURS
    ]
    rows = [{"messages": messages} for messages in thought]
    output, summary = filtered(tmp_path / "all", rows, THINKING, turns="all")
    first, _ = filtered(tmp_path / "first", [{"messages": messages[:2]} for messages in thought], THINKING)
    assert summary["dropped"] == 0.0
    prompts, alone = prompts_of(examples(output)), prompts_of(examples(first))
    assert prompts["place"].tolist() == [place for row in range(6) for place in ((row, 1), (row,))]
    for column in ("prompt_ids", "response_ids"):
        assert list(map(list, prompts[column]))[::2] == list(map(list, alone[column]))
    assert prompts["response"].tolist()[::2] == alone["response"].tolist()
    assert alone["response"].tolist()[0] == "<think>Hm.</think>A red hat."
    assert examples(output)["turns"].map(len).tolist() == [1] * 6, "one is learnt in a pass"
    page = (output / "filtering.md").read_text(encoding="utf-8")
    assert "6 rows: an earlier answer is not learnt from the data's text, only asked for: " in page


def test_an_answer_apart_that_is_too_long_is_left_out_and_its_row_stays(tmp_path: Path):
    rows = [{"messages": talk(colour)} for colour in COLOURS]
    long = [dict(message) for message in talk("red")]
    long[1]["content"] = "<think>" + "Hm. " * 200 + "</think>A hat."
    output, summary = filtered(tmp_path, [*rows[1:], {"messages": long}], THINKING, turns="all")
    assert summary["dropped"] == 0.0
    assert examples(output)["apart"].map(len).tolist() == [0] * 6
    page = (output / "filtering.md").read_text(encoding="utf-8")
    assert "1 rows: an earlier answer is left out: with a prompt of its own, it is longer than data.max_tokens." in page


def test_of_an_instruction_the_last_answer_is_all(tmp_path: Path):
    rows = [{"instruction": f"Name a {c} thing.", "response": f"A {c} hat."} for c in COLOURS]
    for number, template in enumerate((Template(), Template(**PLAIN))):
        found = [
            filtered(tmp_path / f"{turns}{number}", rows, template=template, turns=turns)[0]
            for turns in ("last", "all")
        ]
        for part in ("train", "validation", "test"):
            assert len({(output / f"{part}.parquet").read_bytes() for output in found}) == 1


def test_answers_that_a_prompt_gives_are_read_with_all_answers_learnt_too(tmp_path: Path):
    output, summary = filtered(tmp_path, FORMATS["prompt and completion"], turns="all")
    assert summary["malformed"] == 0.0
    assert prompts_of(examples(output))["response"].tolist() == [f"A {colour} door." for colour in COLOURS]


def test_rows_that_differ_in_tools_alone_are_no_duplicates(tmp_path: Path):
    tools = [[{"type": "function", "function": {"name": f"of_{colour}"}}] for colour in COLOURS]
    rows = [{"messages": talk("red"), "tools": of} for of in [*tools, tools[0]]]
    output, summary = filtered(tmp_path, [*rows, {"messages": talk("blue")}], split=["train"] * 7 + ["dev"])
    assert pd.read_csv(output / "dropped.csv", index_col=0)["total"].to_dict() == {"duplicate": 1, "total": 1}
    assert summary["train"] == 6.0


def test_the_longest_prompt_decides_whichever_answers_are_learnt(tmp_path: Path):
    longer = [{**FORMATS["messages"][0], "messages": [*talk("red"), *talk("blue")]}, *FORMATS["messages"]]
    for turns in ("last", "all"):
        output, _ = filtered(tmp_path / turns, longer, turns=turns, max_prompt_tokens=70)
        dropped = pd.read_csv(output / "dropped.csv", index_col=0)
        assert dropped["things"].to_dict() == {"prompt too long": 1, "total": 1}


def test_a_text_is_taken_where_the_configuration_gives_one(tmp_path: Path):
    rows = [{"instruction": f"Name a {c} thing.", "response": f"A {c} hat."} for c in COLOURS]
    output, _ = filtered(tmp_path, rows, template=Template(**PLAIN))
    assert examples(output).iloc[0]["prompt"] == "Name a red thing.>"


def test_rows_that_cannot_be_learnt_are_counted_with_file_line_and_reason(tmp_path: Path):
    system = {"role": "system", "content": "Be brief."}
    rows = [
        *FORMATS["messages"],
        {"messages": talk("red")[:1]},
        {"messages": [system, *talk("pink")]},
        {"instruction": "Name a thing.", "response": "A hat."},
    ]
    output, summary = filtered(tmp_path, rows, INSTRUCTIONS)
    assert summary["malformed"] == 3.0
    found = read_lines(output / "malformed.jsonl")
    assert [(row["row"], row["file"], row["line"]) for row in found] == [(n, "rows.jsonl", n + 1) for n in (6, 7, 8)]
    assert found[0]["reason"] == "no message of the assistant"
    assert found[1]["reason"] == "the chat template refuses it: only user and assistant, please"
    assert found[2]["reason"] == "no field `messages`"


def test_duplicates_and_rows_that_a_benchmark_asks_are_dropped(tmp_path: Path):
    rows = [*FORMATS["messages"], FORMATS["messages"][0]]
    output, summary = filtered(tmp_path, rows, benchmark="another  BLUE one?")
    dropped = pd.read_csv(output / "dropped.csv", index_col=0)
    assert dropped["things"].to_dict() == {"also in an evaluation set": 1, "duplicate": 1, "total": 2}
    assert summary["contaminated"] == 1.0
    assert read_lines(output / "decontaminated.jsonl")[0]["instruction"] == "Another blue one?"


def test_an_instruction_of_a_benchmark_with_its_context_is_found_in_conversations(tmp_path: Path):
    rows = FORMATS["messages"]
    opened = [{"role": "user", "content": "Name a red thing.\n\nIn the red room."}, *talk("red")[1:]]
    output, summary = filtered(
        tmp_path, [*rows, {"messages": opened}], benchmark="name a red thing.", context="In the  red room."
    )
    assert summary["contaminated"] == 1.0
    (found,) = read_lines(output / "decontaminated.jsonl")
    assert (found["row"], found["benchmark"], found["benchmark_row"]) == (6, "asked", 0)


def test_conversations_may_go_on_alike_but_not_open_with_what_is_held_out(tmp_path: Path):
    thanks = [{"role": "user", "content": "Thanks!"}, {"role": "assistant", "content": "Welcome."}]
    rows = [{"messages": [*talk(colour), *thanks]} for colour in COLOURS]
    _, summary = filtered(tmp_path / "alike", rows)
    assert (summary["contaminated"], summary["train"]) == (0.0, 4.0)
    told = [talk("red"), [*talk("blue"), *talk("red")], talk("grey"), talk("pink")]
    rows = [{"messages": messages} for messages in told]
    output, _ = filtered(tmp_path / "opens", rows, split=["test", "train", "dev", "train"])
    found = [(row["row"], row["benchmark"]) for row in read_lines(output / "decontaminated.jsonl")]
    assert found == [(1, "test")], "asked later in it, with the answer"


def test_conversations_need_a_chat_template(tmp_path: Path):
    with pytest.raises(StageError, match=r"has conversations \(`messages`\), which only a chat template can render"):
        filtered(tmp_path, FORMATS["messages"], template=Template(**PLAIN))


def test_fields_have_other_names(tmp_path: Path):
    rows = [{"dialog": row["messages"]} for row in FORMATS["messages"]]
    output, _ = filtered(tmp_path, rows, fields=RowFields(messages="dialog"))
    assert len(examples(output)) == 6


def test_of_a_conversation_that_is_far_too_long_only_a_beginning_is_tokenised(tmp_path: Path):
    long = [{**message, "content": message["content"] + " red" * 10**6} for message in talk("red")]
    rows = [Row(0, "a", "", "b", "none", Conversation(tuple(long), None))]
    tokenizer: Any = chat_tokenizer(TURNS)
    template, seen = ChatTemplate(tokenizer, [tokenizer.convert_tokens_to_ids("<|end|>")]), []

    class Watched:
        def examples(self, rows: list[Row], turns: Any) -> Any:
            seen.append(sum(len(text) for row in rows for text in row.texts))
            return template.examples(rows, turns)

    (candidate,), refused, _ = tokenise(rows, Watched(), "last", 100, tmp_path / "rows.arrow")  # type: ignore[arg-type]
    assert refused == []
    assert candidate.prompt_tokens > 100
    assert len(seen) == 1
    assert seen[0] < 2 * PIECE
