import json
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.config import Benchmark, Evaluation, Source
from minillm.errors import StageError
from minillm.evaluation.scoring import run
from minillm.stages.base import Job
from minillm.stages.measuring import Score
from tests.minillm.direct import read_lines, write_lines

# First references of 1, 2, 6 and 12 words; the tokenizer below has one token a word.
REFERENCES = [
    ["yes"],
    ["red green", "blue"],
    ["one two three four five six"],
    ["a b c d e f g h i j k l"],
]


def evaluation(seeds=(10, 20), strip=None, **benchmark) -> Evaluation:
    fields = {"source": Source(path="unused"), "length_subsets": True} | benchmark
    return Evaluation(benchmarks={"toy": Benchmark(**fields)}, seeds=seeds, strip=strip)


def answer(index: int, seed: int, response: str, **fields) -> dict:
    row = {"index": index, "seed": seed, "response": response, "tokens": len(response.split()), "finished": True}
    return row | fields


def all_right(seed: int) -> list[dict]:
    return [answer(index, seed, references[0]) for index, references in enumerate(REFERENCES)]


def job(folder: Path, responses: dict[str, list[dict]], settings: Evaluation) -> Job[Score]:
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder / "tokenizer")
    for name in ("benchmarks", "responses", "output", "work"):
        (folder / name).mkdir()
    prompts = [
        {"index": index, "instruction": "?", "context": "", "references": references, "topic": ""}
        for index, references in enumerate(REFERENCES)
    ]
    for name, rows in responses.items():
        write_lines(folder / "benchmarks" / f"{name}.jsonl", prompts)
        write_lines(folder / "responses" / f"{name}.jsonl", rows)
    return Job(
        kind="score",
        settings=Score(role="sft", seeds=settings.seeds, benchmarks=settings.benchmarks, strip=settings.strip),
        inputs={name: folder / name for name in ("responses", "benchmarks", "tokenizer")},
        output=folder / "output",
        work=folder / "work",
    )


def test_mean_over_prompts_then_mean_and_spread_over_seeds(tmp_path):
    # seed 10: 1, 1, 1, 1 -> 100. seed 20: 0, best of two references 1, 3 of 6 words (6/9), 1 -> 66.666…
    second = [answer(0, 20, "no"), answer(1, 20, "BLUE"), answer(2, 20, "one two three"), *all_right(20)[3:]]
    second[0]["finished"] = False
    work = job(tmp_path, {"toy": all_right(10) + second}, evaluation())

    summary = run(work)

    low = 100 * (0 + 1 + 6 / 9 + 1) / 4
    assert summary["rouge_l/toy"] == pytest.approx((100 + low) / 2)
    assert summary["rouge_l/toy_spread"] == pytest.approx((100 - low) / 2**0.5)  # ddof 1, two values
    assert summary["exact_match/toy"] == pytest.approx(75.0)
    assert summary["rouge_l/toy/0-5"] == pytest.approx(75.0)
    assert summary["rouge_l/toy/6-10"] == pytest.approx(100 * (1 + 6 / 9) / 2)
    assert summary["rouge_l/toy/11-up"] == pytest.approx(100.0)
    assert summary["rouge_l/mean"] == summary["rouge_l/toy"]
    assert summary["finished/toy"] == pytest.approx(100 * 7 / 8)
    scores = pd.read_parquet(work.output / "scores.parquet")
    assert sorted(scores["reference_tokens"].unique()) == [1, 2, 6, 12]
    assert scores.loc[(scores["seed"] == 20) & (scores["index"] == 2), "rouge_l"].item() == pytest.approx(6 / 9)
    table = json.loads((work.output / "table.json").read_text(encoding="utf-8"))
    assert table["benchmarks"]["toy"]["rouge_l"]["per_seed"] == pytest.approx({"10": 100.0, "20": low})
    assert table["benchmarks"]["toy"]["prompts"] == 4


def test_headline_counts_only_prompts_with_long_references(tmp_path):
    rows = all_right(10)
    rows[0]["response"] = rows[1]["response"] = "wrong"
    work = job(tmp_path, {"toy": rows}, evaluation(seeds=(10,), min_reference_tokens=6, length_subsets=False))

    summary = run(work)

    assert summary["rouge_l/toy"] == 100.0
    assert summary["rouge_l/toy_spread"] == 0.0
    assert not [name for name in summary if name.startswith("rouge_l/toy/")]
    table = json.loads((work.output / "table.json").read_text(encoding="utf-8"))
    assert (table["benchmarks"]["toy"]["prompts"], table["benchmarks"]["toy"]["all_prompts"]) == (2, 4)
    assert table["benchmarks"]["toy"]["score"]["interval"] == [None, None], "two prompts count"


def test_mean_over_benchmarks_weighs_them_equally_per_seed(tmp_path):
    benchmarks = {
        "easy": Benchmark(source=Source(path="unused")),
        "hard": Benchmark(source=Source(path="unused"), min_reference_tokens=12),
    }
    wrong = [answer(index, seed, "wrong") for seed in (10, 20) for index in range(4)]
    right = all_right(10) + all_right(20)
    wrong[3]["response"] = REFERENCES[3][0]  # seed 10 gets the only headline prompt of `hard` right
    work = job(tmp_path, {"easy": right, "hard": wrong}, Evaluation(benchmarks=benchmarks, seeds=(10, 20)))

    summary = run(work)

    assert summary["rouge_l/hard"] == pytest.approx(50.0)
    assert summary["rouge_l/mean"] == pytest.approx(75.0)
    assert summary["rouge_l/mean_spread"] == pytest.approx(50 / 2**0.5)  # 100 and 50
    table = json.loads((work.output / "table.json").read_text(encoding="utf-8"))
    assert table["benchmarks"]["easy"]["score"]["interval"] == [None, None], "all are right"
    assert table["mean"]["score"]["interval"] == [None, None], "`hard` has a single headline prompt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:4] + rows[6:], r"toy, seed 20: 2 of 4 prompts missing: 0, 1;"),
        (lambda rows: [*rows, rows[5]], r"toy, seed 20: 1 of 4 prompts answered more than once: 1;"),
        (lambda rows: [*rows, answer(9, 10, "x")], r"toy, seed 10: 1 of 4 prompts not in the benchmark: 9;"),
        (lambda rows: [*rows, answer(0, 30, "x")], r"toy: responses of seeds \[30\].*\[10, 20\]"),
        (lambda rows: [], r"toy: there are no responses"),
    ],
)
def test_incomplete_responses_are_refused_by_name(tmp_path, change, message):
    work = job(tmp_path, {"toy": change(all_right(10) + all_right(20))}, evaluation())
    with pytest.raises(StageError, match=message):
        run(work)


def test_a_headline_without_prompts_is_refused(tmp_path):
    work = job(tmp_path, {"toy": all_right(10)}, evaluation(seeds=(10,), min_reference_tokens=13))
    with pytest.raises(StageError, match=r"toy.min_reference_tokens is 13.*has 12 tokens.*lower it"):
        run(work)


def test_texts_that_look_like_other_types_stay_texts(tmp_path):
    rows = all_right(10)
    rows[0]["response"], rows[1]["response"] = "2001-01-01", "null"
    summary = run(job(tmp_path, {"toy": rows}, evaluation(seeds=(10,))))
    assert summary["rouge_l/toy"] == 50.0


def test_the_score_of_a_benchmark_is_its_own_metric(tmp_path):
    half = [answer(0, 10, "yes no"), *all_right(10)[1:]]  # REFERENCES[0] is partly right: Rouge-L, no exact match
    settings = evaluation(seeds=(10,), metric="exact_match")
    summary = run(job(tmp_path, {"toy": half}, settings))
    table = json.loads((tmp_path / "output" / "table.json").read_text(encoding="utf-8"))
    row = table["benchmarks"]["toy"]
    assert row["score"]["mean"] == row["exact_match"]["mean"] == summary["exact_match/toy"] == 75.0
    assert table["mean"]["score"]["mean"] == 75.0
    assert row["rouge_l"]["mean"] > 75.0
    assert summary["exact_match/toy/0-5"] == row["score_by_length"]["0-5"]["mean"]


def test_each_benchmark_is_scored_by_its_metric_and_by_those_that_all_have(tmp_path):
    unused = Source(path="unused")
    benchmarks = {
        "words": Benchmark(source=unused),
        "group": Benchmark(source=unused, metric="regex", pattern=r"the (\w+)"),
        "form": Benchmark(source=unused, metric="json_schema", json_schema={"type": "integer"}),
    }
    responses = {
        "words": all_right(10),
        "group": [answer(0, 10, "It is the yes"), answer(1, 10, "the BLUE one"), *all_right(10)[2:]],
        "form": [answer(0, 10, "3"), answer(1, 10, "3.5"), answer(2, 10, "yes"), answer(3, 10, "[4]")],
    }
    work = job(tmp_path, responses, Evaluation(benchmarks=benchmarks, seeds=(10,)))
    prompts = read_lines(tmp_path / "benchmarks" / "form.jsonl")
    write_lines(
        tmp_path / "benchmarks" / "form.jsonl",
        [prompt | {"json_schema": {"type": "array"} if prompt["index"] == 3 else None} for prompt in prompts],
    )

    summary = run(work)

    assert summary["regex/group"] == 50.0, "found in two; a bare reference is what the group must hold"
    assert summary["json_schema/form"] == 50.0, "3 against the benchmark's schema, [4] against the row's own"
    table = json.loads((work.output / "table.json").read_text(encoding="utf-8"))
    assert [row["score"]["mean"] for row in table["benchmarks"].values()] == [100.0, 50.0, 50.0]
    assert table["mean"]["score"]["mean"] == pytest.approx(200 / 3)
    assert set(table["mean"]) == {"score", "rouge_l", "exact_match"}, "no mean over some of the benchmarks"
    assert [name for name in summary if name.startswith(("regex", "json_schema"))] == [
        *("regex/group", "regex/group_spread", "json_schema/form", "json_schema/form_spread")
    ]


CLOSED, OPEN = r"(?s)<think>.*?</think>\s*", r"(?s)<think>.*?(?:</think>\s*|\Z)"


@pytest.mark.parametrize(
    ("pattern", "score", "told"),
    [
        (None, 25.0, ""),
        (CLOSED, 75.0, "takes something out of 2 of 4 responses, and leaves nothing of 0"),
        (OPEN, 75.0, "takes something out of 3 of 4 responses, and leaves nothing of 1"),
    ],
)
def test_thinking_parts_are_taken_out_before_scoring(tmp_path, capsys, pattern, score, told):
    thoughts = [
        "<think>\nno or yes?\n</think>\n\nyes",
        "<think></think>BLUE<think>blue</think>",
        "<think>one two three four five six",  # cut at the limit
        REFERENCES[3][0],
    ]
    rows = [answer(index, 10, text) for index, text in enumerate(thoughts)]
    work = job(tmp_path, {"toy": rows}, evaluation(seeds=(10,), strip=pattern, metric="exact_match"))
    stored = (tmp_path / "responses" / "toy.jsonl").read_text(encoding="utf-8")

    assert run(work)["exact_match/toy"] == score

    assert told in capsys.readouterr().out
    assert (tmp_path / "responses" / "toy.jsonl").read_text(encoding="utf-8") == stored
    cut = pd.read_parquet(work.output / "scores.parquet").set_index("index").loc[2]
    assert (cut["rouge_l"] > 0) == (pattern != OPEN), "without an end, the thought is scored unless \\Z takes it out"


def test_a_reference_that_thinks_is_compared_by_its_answer(tmp_path):
    said = "<think>\nwhich scale?\n</think>\n\n21 degrees."
    rows = [answer(0, 10, said), answer(1, 10, "21 degrees."), *all_right(10)[2:]]
    work = job(tmp_path, {"toy": rows}, evaluation(seeds=(10,), strip=CLOSED, metric="exact_match"))
    prompts = read_lines(tmp_path / "benchmarks" / "toy.jsonl")
    thinking = [prompt | ({"references": [said]} if prompt["index"] < 2 else {}) for prompt in prompts]
    write_lines(tmp_path / "benchmarks" / "toy.jsonl", thinking)

    assert run(work)["exact_match/toy"] == 100.0

    lengths = pd.read_parquet(work.output / "scores.parquet")["reference_tokens"].tolist()
    assert lengths[:2] == [2, 2], "words of the answer alone"


def test_characters_are_scored_where_a_benchmark_asks_for_them(tmp_path):
    rows = [answer(0, 10, "yes"), answer(1, 10, "東京 2020"), *all_right(10)[2:]]
    work = job(tmp_path, {"toy": rows}, evaluation(seeds=(10,), metric="rouge_l_characters"))
    prompts = [
        json.loads(line) for line in (tmp_path / "benchmarks" / "toy.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    prompts[1]["references"] = ["大阪 2020"]
    (tmp_path / "benchmarks" / "toy.jsonl").write_text(
        "".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8"
    )

    summary = run(work)

    assert summary["rouge_l_characters/toy"] == pytest.approx(100 * (3 + 4 / 6) / 4), "2020 is four of six"
    assert summary["rouge_l/toy"] == 100.0, "of words, the number is all there is"
    table = json.loads((work.output / "table.json").read_text(encoding="utf-8"))
    assert table["benchmarks"]["toy"]["score"]["mean"] == summary["rouge_l_characters/mean"]
