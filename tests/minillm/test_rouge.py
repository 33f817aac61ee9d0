import json
import os
import random
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from minillm.errors import StageError
from minillm.metrics.by_name import METRICS_BY_NAME, require_seen
from minillm.metrics.rouge import exact_match, rouge_l, rouge_l_characters

DATA = Path(os.environ.get("MINILLM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SCORER = RougeScorer(["rougeL"], use_stemmer=True)


def package_rouge_l(response: str, references: list[str]) -> float:
    return max(SCORER.score(reference, response)["rougeL"].fmeasure for reference in references)


def outputs(name: str) -> list[list[str]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real data at {path}; set MINILLM_DATA to its folder")
    rows = [json.loads(line)["output"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [[row] if isinstance(row, str) else row for row in rows]


def test_hand_computed_examples():
    # the cat sat | the cat lay down: LCS "the cat", P = 2/3, R = 2/4, F = 4/7
    assert rouge_l("the cat sat", ["the cat lay down"]) == pytest.approx(4 / 7, abs=1e-15)
    # order counts: "b a" and "a b" have a common subsequence of one word
    assert rouge_l("b a", ["a b"]) == pytest.approx(1 / 2, abs=1e-15)
    # words of more than three letters are stemmed, shorter ones are not
    assert rouge_l("Running dogs!", ["run dog"]) == 1.0
    assert rouge_l("cats", ["cat"]) == 1.0
    assert rouge_l("was", ["wa"]) == 0.0


def test_the_best_reference_counts():
    references = ["nothing in common", "red green", "red green blue"]
    assert rouge_l("red green blue", references) == 1.0
    assert rouge_l("red green blue", references[:2]) == pytest.approx(4 / 5, abs=1e-15)


def test_no_reference_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        rouge_l("a", [])
    with pytest.raises(ValueError, match="empty"):
        exact_match("a", [])


ODD = [
    "", " ", "...", "?!", "a", "A", "1", "3.14", "10,000", "10 000", "naïve café", "Straße", "你好 世界", "İstanbul",
    "don't", "dont", "e-mail", "x" * 300, "a b " * 200, "\n\ttabs\u00a0and\u2003spaces", "_under_score_", "🙂 ok 🙂",
    "generalization generalisations", "The the THE", "\x00null\x00", "ﬁligree", "K kelvin",
]  # fmt: skip


@pytest.mark.parametrize("reference", ODD)
def test_odd_strings_equal_the_package(reference):
    for response in ODD:
        assert abs(rouge_l(response, [reference]) - package_rouge_l(response, [reference])) < 1e-12


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("vicuna/minillm_vicuna_80.jsonl", 80),
        ("dolly/minillm_test_500.jsonl", 500),
        ("sni/test.jsonl", 1694),
    ],
)
def test_real_answers_against_shuffled_references_equal_the_package(name, pairs):
    references = outputs(name)
    assert len(references) == pairs
    responses = [options[0] for options in references]
    random.Random(0).shuffle(responses)
    scores = [
        (rouge_l(response[:1500], options), package_rouge_l(response[:1500], options))
        for response, options in zip(responses, references, strict=True)
    ]
    assert max(abs(ours - theirs) for ours, theirs in scores) < 1e-12
    assert len({round(ours, 6) for ours, _ in scores}) > 25  # the pairs do discriminate


def test_exact_match_ignores_case_punctuation_and_white_space_alone():
    assert exact_match("  Don't\n PANIC! ", ["dont panic"]) == 1.0
    assert exact_match("yes", ["no", "Yes."]) == 1.0
    assert exact_match("yes sir", ["yes"]) == 0.0
    assert exact_match("", ["..."]) == 1.0
    assert exact_match("café", ["cafe"]) == 0.0


def test_characters_of_any_script_by_hand():
    assert rouge_l_characters("北京是中国的首都。", ["北京是中国的首都"]) == 1.0, "punctuation does not count"
    assert rouge_l_characters("東京 2020", ["大阪 2020"]) == pytest.approx(2 * 4 / 12), "the number alone"
    # м о с к в а | м о с т: LCS "мос", P = 3/6, R = 3/4
    assert rouge_l_characters("Москва", ["мост"]) == pytest.approx(2 * 3 / 10)
    assert rouge_l_characters("हिन्दी", ["हिन्दू"]) == pytest.approx(2 * 5 / 12), "vowel signs are tokens"
    assert rouge_l_characters("ＡＢＣ １２", ["abc 12"]) == 1.0, "compatibility forms are the same"
    assert rouge_l_characters("cafe\u0301", ["café"]) == 1.0, "composed or not"
    assert rouge_l_characters("!?", ["…"]) == 0.0
    with pytest.raises(ValueError, match="empty"):
        rouge_l_characters("a", [])


@pytest.mark.parametrize(
    ("text", "by_words", "by_characters"),
    [
        ("北京是中国的首都。", False, True),
        ("東京 2020", False, True),
        ("Москва — столица", False, True),
        ("القاهرة", False, True),
        ("iPhone 是一部手机，由苹果公司设计", False, True),
        ("L'été à Besançon", True, True),
        ("Đường phố Hà Nội", True, True),
        ("42", True, True),
        ("x = α + β·γ² for all real numbers", True, True),
        ("- 😌😊", False, False),
        ("[]", False, False),
    ],
)
def test_what_a_metric_sees(text, by_words, by_characters):
    assert bool(METRICS_BY_NAME["rouge_l"].sees(text)) == by_words
    assert bool(METRICS_BY_NAME["rouge_l_characters"].sees(text)) == by_characters


@pytest.mark.parametrize("metric", [metric for metric in METRICS_BY_NAME.values() if metric.reads is None])
def test_what_a_metric_sees_equals_itself(metric):
    for text in ODD:
        if metric.sees(text):
            assert metric.compare(text, [text]) == 1.0


def test_references_that_are_not_seen_are_refused_with_number_first_and_remedy():
    mixed = [["Paris."], ["北京是中国的首都"], ["大阪 2020", "東京 2020"], ["大阪", "Osaka"]]
    with pytest.raises(StageError) as refusal:
        require_seen("benchmark cities", mixed, "rouge_l", "set its metric to another")
    assert str(refusal.value) == (
        "benchmark cities: rouge_l sees nothing of 2 of 4 references, the first is number 1, counted from 0: "
        "'北京是中国的首都'. A perfect answer would score 0, and one that only shares a number would score 1; "
        "set its metric to another (rouge_l_characters or exact_match)"
    )
    require_seen("benchmark cities", mixed, "rouge_l_characters", "")
    with pytest.raises(StageError, match=r"'\[\]'\. A perfect answer .* another$"):
        require_seen("brackets", [["[]"]], "rouge_l", "set its metric to another")


def test_a_few_that_are_not_seen_are_told(capsys):
    require_seen("benchmark mine", [["- 😌😊"], *[["good"]] * 99], "rouge_l", "")
    assert "sees nothing of 1 of 100 references" in capsys.readouterr().out
    require_seen("benchmark mine", [["good"]] * 100, "rouge_l", "")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["vicuna/minillm_vicuna_80.jsonl", "dolly/minillm_test_500.jsonl", "sni/test.jsonl"])
def test_real_benchmarks_are_seen(name, capsys):
    require_seen(name, outputs(name), "rouge_l", "")
    assert capsys.readouterr().out == ""
