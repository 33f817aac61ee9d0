import pytest

from minillm.config import Fields, Metric, Scoring
from minillm.data.benchmarks import load_benchmarks, read_benchmark, select_topics
from minillm.errors import StageError
from minillm.stages.reading import Benchmarks
from tests.minillm.direct import ROOT, real_data, run_stage, write_lines


def test_every_benchmark_comes_out_in_one_format(tmp_path):
    rows = [
        {"topic": "t", "instruction": "i", "input": "c", "output": "o", "prompt": "not this"},
        {"category": "k", "instruction": "i\u2028j", "output": ["o", "p"]},
    ]
    output, summary = run_stage(
        Benchmarks(fields={"a": Fields()}, topics={}),
        {"benchmark/a": write_lines(tmp_path / "a.jsonl", rows)},
        tmp_path / "run",
    )
    assert summary == {"a": 2.0}
    assert load_benchmarks(output)["a"] == [
        {"index": 0, "instruction": "i", "context": "c", "references": ["o"], "topic": "t"},
        {"index": 1, "instruction": "i\u2028j", "context": "", "references": ["o", "p"], "topic": "k"},
    ]


def test_the_first_name_with_a_value_counts(tmp_path):
    rows = [
        {
            "instruction": "i",
            "context": "",
            "input": "c",
            "output": [],
            "response": "r",
            "topic": None,
            "category": "k",
        },
        {"instruction": "i", "context": None, "input": "c", "output": None, "response": ["r"], "category": "k"},
    ]
    found = read_benchmark("a", write_lines(tmp_path / "a.jsonl", rows), Fields())
    assert [(row["context"], row["references"], row["topic"]) for row in found] == [("c", ["r"], "k")] * 2


def test_other_fields_are_named_in_the_record(tmp_path):
    rows = [{"question": "q", "passage": "p", "answers": ["a", "b"], "instruction": "not this"}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    named = Fields(instruction="question", context="passage", references="answers")
    (row,) = read_benchmark("a", path, named)
    assert (row["instruction"], row["context"], row["references"]) == ("q", "p", ["a", "b"])
    with pytest.raises(StageError, match=r"a\.jsonl:1: no field `text`"):
        read_benchmark("a", path, named.model_copy(update={"context": "text"}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "benchmark a: .* has no rows"),
        ([{"instruction": "i", "output": "o"}, {"instruction": "i", "output": " "}], r"a\.jsonl:2: `output` is empty"),
        ([{"instruction": "i", "output": []}], ":1: `output` is an empty list"),
        ([{"instruction": "i", "output": ["o", ""]}], ":1: `output` is empty"),
        ([{"instruction": "i"}], ":1: no field `output`"),
        ([{"output": "o"}], ":1: no field `instruction`"),
        (["i"], ":1: not an object but str"),
    ],
)
def test_a_benchmark_that_cannot_be_scored_is_refused_by_file_row_and_field(tmp_path, rows, message):
    with pytest.raises(StageError, match=message):
        run_stage(
            Benchmarks(fields={"a": Fields()}, topics={}),
            {"benchmark/a": write_lines(tmp_path / "a.jsonl", rows)},
            tmp_path / "run",
        )


def test_a_benchmark_of_some_topics_only(tmp_path):
    rows = [{"category": topic, "instruction": f"about {topic}", "output": "o"} for topic in ("law", "art", "law")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    stage = Benchmarks(fields={"a": Fields(), "b": Fields()}, topics={"a": ("law",)})
    output, summary = run_stage(stage, {"benchmark/a": path, "benchmark/b": path}, tmp_path / "run")
    assert summary == {"a": 2.0, "b": 3.0}
    kept = load_benchmarks(output)["a"]
    assert [(row["index"], row["topic"]) for row in kept] == [(0, "law"), (1, "law")]
    with pytest.raises(StageError, match=r"benchmarks\.a\.topics: no row is about `laws`; did you mean `law`\?"):
        select_topics("a", kept, ["laws"])
    with pytest.raises(StageError, match=r"no field `subject`"):
        read_benchmark("a", path, Fields(topic="subject"))


def test_part_of_a_benchmark_is_evenly_spaced_over_what_counts(tmp_path):
    rows = [{"topic": "ab"[n % 2], "instruction": f"{n}", "output": "o"} for n in range(20)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    stage = Benchmarks(fields={"a": Fields()}, topics={"a": ("b",)}, prompts={"a": 4})
    output, summary = run_stage(stage, {"benchmark/a": path}, tmp_path / "run")
    assert summary == {"a": 4.0}
    kept = load_benchmarks(output)["a"]
    assert [(row["index"], row["instruction"]) for row in kept] == [(0, "1"), (1, "5"), (2, "11"), (3, "15")]


def test_the_embedded_benchmarks_read():
    folder = ROOT / "data" / "embedded"
    names = ("dolly_eval", "self_inst", "vicuna", "sni", "unni")
    for name in names:
        rows = read_benchmark(name, folder / f"{name}.jsonl", Fields())
        assert len(rows) >= 80
        assert any(len(row["references"]) > 1 for row in rows) == (name == "sni")


def test_the_real_benchmarks_read(tmp_path):
    folder = real_data()
    sources = {
        "dolly": folder / "dolly" / "minillm_test_500.jsonl",
        "self_inst": folder / "selfinst" / "minillm_selfinst_242.jsonl",
        "vicuna": folder / "vicuna" / "minillm_vicuna_80.jsonl",
        "sni": folder / "sni" / "test.jsonl",
        "unni": folder / "unni" / "core_len0-2_1050.jsonl",
    }
    output, summary = run_stage(
        Benchmarks(fields=dict.fromkeys(sources, Fields()), topics={}),
        {f"benchmark/{name}": path for name, path in sources.items()},
        tmp_path,
    )
    assert summary == {"dolly": 500.0, "self_inst": 242.0, "vicuna": 80.0, "sni": 1694.0, "unni": 1050.0}
    assert max(len(row["references"]) for row in load_benchmarks(output)["sni"]) > 1


def test_references_that_the_metric_cannot_see_are_refused_by_name(tmp_path):
    rows = [{"instruction": "i", "output": text} for text in ("Paris", "東京 2020", "Москва")]
    source = {"benchmark/cities": write_lines(tmp_path / "cities.jsonl", rows)}

    def read(metric: Metric, folder: str) -> dict[str, float | str]:
        stage = Benchmarks(fields={"cities": Fields()}, topics={}, scoring={"cities": Scoring(metric=metric)})
        return run_stage(stage, source, tmp_path / folder)[1]

    with pytest.raises(StageError, match=r"benchmark cities: rouge_l sees nothing of 2 of 3 .* number 1.*'東京 2020'"):
        read("rouge_l", "words")
    assert read("rouge_l_characters", "characters") == read("exact_match", "exact") == {"cities": 3.0}
