import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.config import Benchmark, Model, Source
from minillm.evaluation import diversity as diversity_stage
from minillm.evaluation import exposure, scoring
from minillm.evaluation.differences import TEACHER
from minillm.reporting import report
from minillm.reporting.comparison import Comparison, how_tested, verdict
from minillm.reporting.model_words import cost_words, model_table
from minillm.reporting.plots import looks
from minillm.reporting.sections.exposure import exposure_section
from minillm.reporting.sections.rollouts import PANELS, rollouts_section
from minillm.stages.base import Job
from minillm.stages.measuring import Diversity, Score
from minillm.stages.pages import Report
from minillm.training.collapse import COLLAPSED
from tests.manifests import write_manifest

ROLES = ("teacher", "sft", "kd", "minillm")
KEPT_WORDS = {"teacher": 0.75, "sft": 0.5, "kd": 0.52, "minillm": 0.65}
SEEDS = (10, 20, 30)
MIDDLE = 14
"""Index of the prompt in the middle of 30, which is always shown."""
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "birds", "watch"]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_inputs(folder: Path, benchmarks: tuple[str, ...] = ("dolly", "sni")) -> dict[str, Path]:
    """Make the artifacts of a whole small run; each role's responses are references that lose words at its own rate."""
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(folder / "tokenizer")
    draw = random.Random(0)
    prompts = {}
    for name in benchmarks:
        prompts[name] = [
            {
                "index": index,
                "instruction": f"Describe <b>scene</b> {index} & say | what happens.",
                "context": "Some context\nin lines." if index % 2 else "",
                "references": [" ".join(draw.choices(WORDS, k=draw.choice([4, 8, 20])))],
                "topic": "",
            }
            for index in range(30)
        ]
        write_jsonl(folder / "benchmarks" / f"{name}.jsonl", prompts[name])
    inputs = {"benchmarks": folder / "benchmarks", "examples": folder / "examples", "cost": folder / "cost"}
    write_cost(folder / "cost", {"teacher": 1000.0, "sft": 2400.0, "kd": 2500.0, "minillm": 2600.0})
    for role in ROLES:
        make_role(folder, role, prompts, draw, inputs)
    (folder / "examples").mkdir()
    columns = ["null", "open_qa", "total"]
    counts = {"malformed": [3, 0, 3], "too long": [7, 40, 47], "in a benchmark": [2, 0, 2], "total": [12, 40, 52]}
    dropped = pd.DataFrame(counts, index=pd.Index(columns)).T
    dropped.rename_axis("reason").to_csv(folder / "examples" / "dropped.csv")
    lengths = {
        "category": ["null", "all"],
        "text": ["prompt", "response"],
        "mean": [41.5, 60.249999999],
        "max": [256, 511],
    }
    pd.DataFrame(lengths).to_csv(folder / "examples" / "lengths.csv", index=False)
    for part, rows in (("train", 1200), ("validation", 20), ("test", 10)):
        pd.DataFrame({"row": range(rows)}).to_parquet(folder / "examples" / f"{part}.parquet")
    return inputs


def write_cost(folder: Path, speeds: dict[str, float]) -> dict:
    """Write the result of the stage `cost`; every model but the first takes a quarter of the first's memory."""
    measured = {
        role: {
            "responses": 30,
            "tokens_per_second": speed,
            "slowest": 0.9 * speed,
            "fastest": 1.1 * speed,
            "peak_memory_gib": 0.5 if number else 2.0,
        }
        for number, (role, speed) in enumerate(speeds.items())
    }
    facts = {"benchmark": "dolly", "rounds": 5, "at_once": 30, "models": measured}
    folder.mkdir()
    (folder / "cost.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def make_role(folder: Path, role: str, prompts: dict, draw: random.Random, inputs: dict[str, Path]) -> None:
    """Write responses, scores and, for all but the teacher, a train artifact."""
    responses = folder / f"generate-{role}"
    for name, rows in prompts.items():
        answered = []
        for seed in SEEDS:
            for row in rows:
                kept = [w if draw.random() < KEPT_WORDS[role] else "lost" for w in row["references"][0].split()]
                text = " ".join(kept) + ("\u2028\x00```|<i>" if row["index"] == MIDDLE else "")
                answered.append(
                    {"index": row["index"], "seed": seed, "response": text, "tokens": len(kept), "finished": True}
                )
        write_jsonl(responses / f"{name}.jsonl", answered)
    encoded = folder / f"prompts-{role}"
    encoded.mkdir()
    (encoded / "cut_prompts.json").write_text(
        json.dumps({name: 3 if name == "sni" else 0 for name in prompts}), encoding="utf-8"
    )
    summary = {"parameters": 5000} if role == "teacher" else {}
    write_manifest(responses, "generate", f"{role:0<64}", summary=summary, versions={"torch": "2.13.0"})
    score = folder / f"score-{role}"
    score.mkdir()
    subsets = {name: Benchmark(source=Source(path="x"), length_subsets=name == "sni") for name in prompts}
    settings = Score(role=role, seeds=SEEDS, benchmarks=subsets)
    sources = {"responses": responses, "benchmarks": folder / "benchmarks", "tokenizer": folder / "tokenizer"}
    scoring.run(Job(kind="score", settings=settings, inputs=sources, output=score, work=folder))
    diversity = folder / f"diversity-{role}"
    diversity.mkdir()
    measured = Diversity(role=role, benchmarks=tuple(prompts))
    job = Job(kind="diversity", settings=measured, inputs={"responses": responses}, output=diversity, work=folder)
    diversity_stage.run(job)
    inputs |= {f"responses/{role}": responses, f"score/{role}": score, f"diversity/{role}": diversity}
    inputs[f"prompts/{role}"] = encoded
    if role != "teacher":
        inputs[f"train/{role}"] = make_train(folder / f"train-{role}", role)
        inputs[f"exposure/{role}"] = make_exposure(folder / f"exposure-{role}", role)


PER_TOKEN = {
    "reverse_kl": {"value": 0.25, "low": 0.2, "high": 0.3},
    "forward_kl": {"value": 0.5, "low": None, "high": None},
}


def make_exposure(path: Path, role: str) -> Path:
    """Each of 30 prompts adds about a tenth of a nat a token, and more and more of it on the student's text."""
    path.mkdir()
    draw = np.random.default_rng(len(role))
    of_teacher = np.cumsum(draw.uniform(0.05, 0.15, size=(10, 30)), axis=0)
    of_student = of_teacher * (1 + 0.05 * (1 - KEPT_WORDS[role]) * np.arange(10))[:, None]
    facts = {"benchmark": "dolly", "prompts": 30, "responses": 90}
    (path / "exposure.json").write_text(
        json.dumps({**facts, **exposure.measure(of_student, of_teacher), "per_token": PER_TOKEN}), encoding="utf-8"
    )
    return path


def make_train(path: Path, role: str) -> Path:
    (path / "model").mkdir(parents=True)
    weights = {"a": np.zeros((10, 40), np.float32), "b": np.zeros(100, np.float32)}
    save_file(weights, path / "model" / "model.safetensors")
    name = "train/reverse_kl" if role == "minillm" else "train/loss"
    lines = [
        {"time": 0.0, "step": step, "total": 500, "metrics": {name: 3 / step**0.3 + 0.1 * (step % 3)}}
        for step in range(1, 501)
    ]
    history = [
        {"step": step, "valid/loss": 2.5 - step / 500, "valid/rouge_l": 30 + step / 50} for step in (100, 300, 500)
    ]
    if role == "minillm":
        rounds = {f"train/{name}": 0.5 for name in (*PANELS, "teacher_entropy")}
        lines += [{"time": 0.0, "step": step, "total": 500, "metrics": rounds} for step in range(1, 500, 50)]
        lines += [{"time": 0.0, "step": 451, "total": 500, "metrics": {COLLAPSED: 8.0}}]
    lines += [{"time": 0.0, "step": h["step"], "total": 500, "metrics": dict(list(h.items())[1:])} for h in history]
    write_jsonl(path / "metrics.jsonl", lines)
    selection = {"select_by": "rouge_l", "step": 500, "value": 40.0, "equal": [], "history": history}
    selection |= {"collapse": "training collapsed from round 8 on"} if role == "minillm" else {}
    (path / "selection.json").write_text(json.dumps(selection), encoding="utf-8")
    method = {"text": "rollouts" if role == "minillm" else "dataset"}
    write_manifest(path, "train", "f" * 64, settings={"seed": 4, "method": method}, versions={"torch": "2.13.0"})
    return path


def make_report(folder: Path, benchmarks: tuple[str, ...] = ("dolly", "sni")) -> tuple[dict, Path]:
    inputs = make_inputs(folder, benchmarks)
    output = folder / "report"
    output.mkdir()
    settings = Report(name="toy-run", roles=ROLES, benchmarks=benchmarks, models={}, planned={})
    summary = report.run(Job(kind="report", settings=settings, inputs=inputs, output=output, work=folder))
    return summary, output


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[dict, Path]:
    return make_report(tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """Parser that collects table cells' texts, ids, addresses that the page would load, and open tags."""

    VOID = frozenset({"meta", "path", "use", "rect", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href", "srcset") and not str(value).startswith("#"):
                self.loaded.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


def read_page(output: Path) -> Page:
    page = Page()
    page.feed((output / "report.html").read_text(encoding="utf-8"))
    return page


def comparison_of(scores: dict[str, list[float]]) -> Comparison:
    """Make a comparison over one benchmark, from one value per prompt and a single seed."""
    values = {role: np.array(of) for role, of in scores.items()}
    cells = {
        role: {"mean": float(of.mean()), "spread": 0.0, "per_seed": {"1": float(of.mean())}}
        for role, of in values.items()
    }
    tables = {
        role: {"benchmarks": {"x": {"metric": "rouge_l", "score": c}}, "mean": {"score": c}}
        for role, c in cells.items()
    }
    return Comparison(tables, ["x"], {role: {"x": of} for role, of in values.items()}, {"minillm": "rollouts"})


def test_benchmarks_with_metrics_of_their_own_say_so():
    cell = {"mean": 50.0, "spread": 0.0, "per_seed": {"1": 50.0}, "interval": [40.0, 60.0]}
    rows = {name: {"metric": metric, "score": cell} for name, metric in (("x", "rouge_l"), ("y", "exact_match"))}
    tables = {role: {"benchmarks": rows, "mean": {"score": cell}} for role in ("teacher", "sft")}
    values = {"x": np.array([40.0, 60.0]), "y": np.array([50.0, 50.0])}
    comparison = Comparison(tables, ["x", "y"], dict.fromkeys(tables, values))
    assert list(report.result_table(comparison).columns) == ["x, Rouge-L", "y, Exact match", "mean", "rank"]
    assert "Score 50.0" in verdict(comparison, {})[0]
    alone = Comparison(tables, ["y"], dict.fromkeys(tables, values))
    assert list(report.result_table(alone).columns) == ["y", "mean", "rank"]
    assert "Exact match 50.0" in verdict(alone, {})[0]


def test_rollouts_are_shown_in_small_panels_and_a_collapse_is_told(finished, tmp_path):
    summary, output = finished
    assert summary["verdict"].endswith("minillm: training collapsed from round 8 on.")
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["collapsed"] == ["minillm: training collapsed from round 8 on."]
    assert "Rollouts in training" in read_page(output).text
    assert (output / "plots" / "rollouts.png").exists()
    section = rollouts_section({"train/minillm": output.parent / "train-minillm"}, ROLES, looks(ROLES))
    assert section is not None
    axes = section.figures["rollouts"][1].get_axes()
    assert [of.get_title(loc="left") for of in axes] == list(PANELS.values())
    assert [len(of.get_lines()) for of in axes] == [3, *[2] * (len(PANELS) - 1)], "the teacher's entropy, the collapse"
    assert [list(np.asarray(line.get_xdata())) for line in axes[1].get_lines()] == [list(range(1, 500, 50)), [451, 451]]
    assert rollouts_section({"train/sft": output.parent / "train-sft"}, ROLES, looks(ROLES)) is None


EASY_AND_HARD = [20.0, 80.0] * 20
"""Scores of prompts, which differ far more than methods do."""


def better(by: float, disagreeing: int = 0) -> list[float]:
    """Return scores above EASY_AND_HARD on every prompt but a few, which are as far below."""
    return [value + (-by if number < disagreeing else by) for number, value in enumerate(EASY_AND_HARD)]


def test_differences_are_paired_by_prompt():
    comparison = comparison_of({"teacher": better(9), "sft": EASY_AND_HARD, "minillm": better(2, disagreeing=5)})
    sft = next(d for d in comparison.differences if d.other == "sft" and d.benchmark == "mean")
    # 35 prompts of +2 and 5 of −2: mean 1.5, standard deviation 1.32, standard error 0.21
    assert sft.value == pytest.approx(1.5)
    assert (sft.low, sft.high) == (pytest.approx(1.1, abs=0.11), pytest.approx(1.9, abs=0.11))
    assert sft.clear
    assert str(sft).startswith("+1.5 [+")


def test_every_two_methods_are_compared_with_p_values():
    comparison = comparison_of(
        {"teacher": better(9), "sft": EASY_AND_HARD, "kd": better(2, disagreeing=15), "minillm": better(4)}
    )
    table = report.pair_table(comparison)
    assert list(table.index) == [
        *("minillm − teacher", "minillm − sft", "minillm − kd", "teacher − sft", "teacher − kd", "sft − kd"),
    ]
    assert table.loc["teacher − sft"].tolist() == ["+9.0", "< 0.001", ""]
    value, p_value, words = table.loc["sft − kd"]
    assert str(value).startswith("−0.5 [−")
    # −2 on 25 prompts of 40 and +2 on the others: how often 25 coins or more of 40 agree, two-sided. Twice that:
    # the two largest of the six p-values between students are this one, for the benchmark and for the mean over it.
    assert float(p_value) == pytest.approx(2 * 2 * stats.binom.sf(24, 40, 0.5), abs=0.02)
    assert words == "not distinguishable"


def test_ranks_overlap_where_methods_cannot_be_told_apart():
    ranks = comparison_of(
        {"teacher": better(9), "sft": EASY_AND_HARD, "kd": better(2, disagreeing=18), "minillm": better(4)}
    ).ranks
    assert ranks == {"teacher": (1, 1), "minillm": (2, 2), "sft": (3, 4), "kd": (3, 4)}


def test_the_verdict_says_how_close_how_small_and_how_sure():
    comparison = comparison_of(
        {
            "teacher": better(10),
            "sft": EASY_AND_HARD,
            "kd": better(4, disagreeing=1),
            "seqkd": better(9),
            "minillm": better(4),
        }
    )
    sentences = verdict(comparison, {"teacher": 1_500_000_000, "seqkd": 124_000_000})
    assert sentences[0] == (
        "The best student is seqkd: Rouge-L 59.0 ± 0.0 (on x), 98\u00a0% of the teacher's 60.0, "
        "with 8.3\u00a0% of its parameters (124\u00a0M of 1.5\u00a0B)."
    )
    assert sentences[1] == "minillm is above sft (+4.0)."
    assert sentences[2].startswith("minillm cannot be told apart from kd (+0.2 [")
    assert sentences[3] == "minillm is below seqkd (−5.0)."
    assert len(sentences) == 4


def test_differences_are_those_of_the_on_policy_method_whatever_it_is_called():
    scores = {"teacher": better(9), "sft": better(4), "on-policy": EASY_AND_HARD}
    tables = comparison_of(scores).tables
    prompts = {role: {"x": np.array(of)} for role, of in scores.items()}
    texts = {"sft": "dataset", "on-policy": "rollouts"}
    assert Comparison(tables, ["x"], prompts, texts).compared == "on-policy"
    assert Comparison(tables, ["x"], prompts, {"sft": "dataset"}).compared == "sft", "the best student"


def test_without_a_teacher_the_best_of_all_is_measured_against_the_first():
    scores = {"gpt2": EASY_AND_HARD, "gpt2-medium": better(10), "mine": better(4)}
    sentences = verdict(comparison_of(scores), {"gpt2": 124_000_000, "gpt2-medium": 355_000_000})
    assert sentences == [
        "The best model is gpt2-medium: Rouge-L 60.0 ± 0.0 (on x), 120\u00a0% of gpt2's 50.0, "
        "with 286\u00a0% of its parameters (355\u00a0M of 124\u00a0M).",
        "gpt2-medium is above gpt2 (+10.0), mine (+6.0).",
    ]
    sentences = verdict(comparison_of({"gpt2": better(5), "mine": EASY_AND_HARD}), {})
    assert sentences[0] == "The best model is gpt2: Rouge-L 55.0 ± 0.0 (on x)."


def test_a_model_alone_is_neither_best_nor_compared():
    assert verdict(comparison_of({"teacher": [60, 40]}), {"teacher": 5}) == ["teacher: Rouge-L 50.0 ± 0.0 (on x)."]


@pytest.mark.parametrize("far_better", ["teacher", "minillm"])
def test_equal_methods_are_rarely_told_apart_whatever_stands_beside_them(far_better):
    """5 % of 400 reports are 20; 33 or more occur in three of a thousand sets of reports."""
    draw = np.random.default_rng(12)
    told_apart = better_seen = 0
    for _ in range(400):
        base = {name: draw.normal(40, 15, 12) for name in ("a", "b")}
        prompts = {
            role: {name: of + (20 if role == far_better else 0) + draw.normal(0, 10, 12) for name, of in base.items()}
            for role in dict.fromkeys([far_better, "sft", "kd", "seqkd"])
        }
        cells = {role: {name: {"mean": of.mean()} for name, of in part.items()} for role, part in prompts.items()}
        tables = {
            role: {
                "benchmarks": {name: {"metric": "rouge_l", "score": cell} for name, cell in part.items()},
                "mean": {"score": {"mean": float(np.mean([cell["mean"] for cell in part.values()]))}},
            }
            for role, part in cells.items()
        }
        found = Comparison(tables, ["a", "b"], prompts).differences
        better_seen += all(d.clear for d in found if far_better in (d.method, d.other) and d.benchmark == "mean")
        told_apart += any(d.clear for d in found if far_better not in (d.method, d.other))
    assert told_apart < 33
    assert better_seen > 380


def test_the_teacher_makes_no_difference_to_the_p_values_between_methods():
    scores = {"sft": EASY_AND_HARD, "kd": better(2, disagreeing=12), "minillm": better(2, disagreeing=15)}
    alone = {(d.method, d.other, d.benchmark): d.p_value for d in comparison_of(scores).differences}
    beside = comparison_of({"teacher": better(2, disagreeing=14), **scores}).differences
    assert {pair: d.p_value for d in beside if TEACHER not in (pair := (d.method, d.other, d.benchmark))} == alone
    assert max(p for p in alone.values() if p is not None) < 1


def test_the_page_says_how_differences_are_tested():
    taught = comparison_of({"teacher": better(9), "sft": EASY_AND_HARD, "minillm": better(4)})
    assert "Differences from the teacher are adjusted among themselves." in how_tested(taught)
    assert "cannot tell" not in how_tested(taught)
    few = how_tested(comparison_of({"a": [1.0, 2, 3, 4, 5], "b": [2.0, 3, 4, 5, 6]}))
    assert "A benchmark of 5 prompts cannot tell models apart by itself: its p-value is never below 0.062." in few
    assert "teacher" not in few


def test_a_single_prompt_claims_no_certainty():
    sentences = verdict(comparison_of({"teacher": [60], "sft": [40], "minillm": [50]}), {})
    assert sentences[1] == "minillm cannot be told apart from sft (+10.0)."


def test_every_number_of_the_table_comes_from_the_scores(finished):
    summary, output = finished
    frame = pd.read_csv(output / "results.csv")
    assert list(frame.columns) == ["method", "benchmark", "mean", "spread", "seed_10", "seed_20", "seed_30"]
    assert len(frame) == len(ROLES) * 3
    scores = pd.read_parquet(output.parent / "score-kd" / "scores.parquet").query("benchmark == 'sni'")
    per_seed = [100 * np.mean(part["rouge_l"]) for _, part in scores.groupby("seed")]
    row = frame.query("method == 'kd' and benchmark == 'sni'").iloc[0]
    assert row["mean"] == pytest.approx(np.mean(per_seed))
    assert row["spread"] == pytest.approx(np.std(per_seed, ddof=1))
    assert summary["kd/score/sni"] == pytest.approx(row["mean"])
    assert summary["best"] == "minillm"
    cell = f"{row['mean']:.1f} ± {row['spread']:.1f}"
    assert cell in read_page(output).cells
    assert cell in (output / "report.md").read_text(encoding="utf-8")


def test_parameters_come_from_weights_or_from_the_generation_of_a_ready_made_teacher(finished):
    _, output = finished
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert results["parameters"] == {"sft": 500, "kd": 500, "minillm": 500, "teacher": 5000}
    assert "10\u00a0% of its parameters (500 of 5\u00a0K)" in results["verdict"][0]


def test_the_page_needs_nothing_else_and_escapes_what_models_wrote(finished):
    _, output = finished
    page = read_page(output)
    assert page.open == []
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "<b>scene</b>" not in html
    assert "&lt;b&gt;scene&lt;/b&gt;" in html
    assert "#010203" not in html


def test_the_page_shows_data_cut_prompts_answers_and_provenance(finished):
    _, output = finished
    page = read_page(output)
    assert "Rows kept: train 1,200, validation 20, test 10." in page.text
    for cell in ("too long", "in a benchmark", "null", "null, prompt", "60.2", "256", "generate", "f" * 16, "4"):
        assert cell in page.cells
    assert "cut to fit: sni 3." in page.text
    assert "torch 2.13.0" in page.text
    answer = json.loads(
        (output.parent / "generate-minillm" / "dolly.jsonl").read_text(encoding="utf-8").split("\n")[MIDDLE]
    )["response"]
    assert answer.replace("\x00", "\ufffd") in page.text
    markdown = (output / "report.md").read_text(encoding="utf-8")
    assert f"```\nDescribe <b>scene</b> {MIDDLE} & say | what happens.\n```" in markdown


def test_exposure_bias_has_a_part_of_its_own(finished):
    _, output = finished
    page = read_page(output)
    assert "over 90 responses to 30 prompts of dolly" in page.text
    for tokens, words in ((3, "5.0"), (5, "10.0"), (8, "17.5"), (10, "22.5")):  # 0.05 · 0.5 · (l − 1) for sft
        assert str(tokens) in page.cells
        assert f"{words} [{words}, {words}]" in page.cells
    sums = json.loads((output.parent / "exposure-kd" / "exposure.json").read_text(encoding="utf-8"))["student_text"]
    ends = [f"{sums[end][-1]:.2f}" for end in ("value", "low", "high")]
    assert f"{ends[0]} [{ends[1]}, {ends[2]}]" in page.cells
    assert ends[1] < ends[0] < ends[2]
    assert "## Exposure bias" in (output / "report.md").read_text(encoding="utf-8")
    drawn = re.findall(r"<svg.*?</svg>", (output / "report.html").read_text(encoding="utf-8"), re.S)
    (svg,) = [text for text in drawn if "excess accumulated error" in text]
    assert ">minillm</text>" in svg
    assert ">teacher</text>" not in svg


def test_exposure_bias_is_silent_where_it_was_not_measured(finished):
    _, output = finished
    look = looks(list(ROLES))
    assert exposure_section({}, ROLES, look) is None
    section = exposure_section({"exposure/kd": output.parent / "exposure-kd"}, ROLES, look)
    assert section is not None
    assert [list(table.index) for table in section.tables.values()] == [["kd"]] * 3


def test_models_that_were_there_already_stand_in_the_table_with_their_origin(tmp_path):
    write_manifest(tmp_path, "generate", sources={"model": "hub:gpt2-xl@15ea56dee5df4983c59b2538573817e1"})
    table = model_table(
        {"responses/teacher": tmp_path},
        {"teacher": Model(hub="gpt2-xl")},
        {"kd": make_train(tmp_path / "kd", "kd")},
        {"teacher": 5000, "kd": 500},
        comparison_of({"teacher": [60], "kd": [50]}),
        write_cost(tmp_path / "cost", {"teacher": 617.0, "kd": 1234.0}),
    )
    assert table.loc["teacher"].to_dict() == {
        "parameters": "5\u00a0K",
        "of the teacher's": "100\u00a0%",
        "from": "gpt2-xl, revision main",
        "content": "15ea56dee5df",
        "tokens/s": "617 (555–679)",
        "peak GiB": "2.00",
        **dict.fromkeys(("selected by", "value", "at step", "last step"), "–"),
    }
    assert table.loc["kd", ["tokens/s", "peak GiB"]].tolist() == ["1,234 (1,111–1,357)", "0.50"]
    assert table.loc["kd", ["of the teacher's", "from", "at step"]].tolist() == ["10\u00a0%", "–", "500"]


def test_the_verdict_says_what_the_best_costs_to_run(tmp_path):
    cost = write_cost(tmp_path / "cost", {"teacher": 1000.0, "kd": 2500.0})
    (sentence,) = cost_words(comparison_of({"teacher": [60], "kd": [50]}), cost)
    assert "kd generates 2,500 tokens per second, 2.5 times as many as the teacher (1,000)" in sentence
    assert "0.50 against 2.00 GiB" in sentence
    assert "5 rounds over 30 prompts of dolly, at most 30 at once" in sentence


def test_answers_are_shown_where_a_method_gains_and_loses_most(finished):
    _, output = finished
    inputs = output.parent
    scores = {
        role: pd.read_parquet(inputs / f"score-{role}" / "scores.parquet").query("benchmark == 'sni'")
        for role in ("minillm", "kd", "sft")
    }
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))["tables"]
    other = max(("kd", "sft"), key=lambda role: results[role]["mean"]["score"]["mean"])
    mean = {role: of.pivot_table(values="score", index="index")["score"].to_dict() for role, of in scores.items()}
    gains = {index: 100 * (score - mean[other][index]) for index, score in mean["minillm"].items()}
    best, worst = max(gains, key=gains.__getitem__), min(gains, key=gains.__getitem__)
    page = (output / "report.md").read_text(encoding="utf-8").split("### sni")[1].split("\n## ")[0]
    assert f"#### Prompt {best}, minillm gains most against {other}: +{gains[best]:.1f}\n" in page
    assert f"#### Prompt {worst}, minillm loses most against {other}: −{-gains[worst]:.1f}\n" in page
    assert f"#### Prompt {MIDDLE}, " in page
    assert len(re.findall(r"^#### Prompt \d+, ", page, re.M)) <= 3


def test_plots_are_written_for_what_was_measured(finished):
    _, output = finished
    names = {path.stem for path in (output / "plots").glob("*.png")}
    assert names == {
        "benchmarks", "length-sni", "train-loss", "valid-loss", "valid-rouge_l", "train-reverse_kl", "exposure-bias",
            "rollouts",
    }  # fmt: skip
    for name in names:
        assert f"plots/{name}.png" in (output / "report.md").read_text(encoding="utf-8")
        assert (output / "plots" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    svg = re.findall(r"<svg.*?</svg>", (output / "report.html").read_text(encoding="utf-8"), re.S)
    assert len(svg) == len(names)
    overview = next(text for text in svg if "interval over prompts" in text)
    for label in (*ROLES, "dolly", "sni", "mean"):
        assert f">{label}</text>" in overview


def test_a_method_keeps_its_colour_in_every_figure(finished):
    _, output = finished
    svg = re.findall(r"<svg.*?</svg>", (output / "report.html").read_text(encoding="utf-8"), re.S)
    for text in svg:
        # kd is the third role: the second colour after the teacher's grey
        assert ("#0072b2" in text.lower()) == (">kd</text>" in text)
