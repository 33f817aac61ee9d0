"""Questions, answers and filters of System 2 distillation, on cases that a person can check."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import GPT2LMHeadModel

from minillm.config import PromptChain, QuestionSet, Source, System2, Template
from minillm.config.loading import load_system2
from minillm.config.system2 import known_chains
from minillm.errors import ConfigError, StageError
from minillm.evaluation.uncertainty import Estimate
from minillm.patterns import group_in
from minillm.planning.subject import of_system2
from minillm.stages.base import Job, Stage
from minillm.stages.reading import Prepare
from minillm.stages.system2 import Ask, Asking, KeepConsistent, QuestionSets
from minillm.stages.training import Train, training_only
from minillm.store.manifest import Artifact
from minillm.system2.asking import CUT, LONG, UNREAD, Answer, Responded, ask_all, read_answers, run
from minillm.system2.canonical import canonical
from minillm.system2.consistency import FEW, NONE, ORDER, TIE, decide
from minillm.system2.questions import original_letter, shown
from minillm.system2.report import AFTER, BEFORE, PAIRS, SLOW, Measured, compare, measure, verdict
from tests.conftest import ROOT
from tests.minillm.direct import PLAIN, alone, read_lines, run_stage, write_lines
from tests.minillm.jobs import WORDS, make_constant_model, make_tokenizer, run_worker, write_job
from tests.minillm.templates import TURNS, save_chat_tokenizer

CHOICES = {"instruction": "Which runs?", "choices": ["a tree", "cat", "stone"]}
REASONER = "{base_url: http://localhost:1/v1, model: large, max_requests: 9}"
CHAIN = {"steps": {"response": "{question}"}, "answer": "(cat|dog)"}


@pytest.mark.parametrize(
    ("answers", "majority", "kept"),
    [
        ([["a", "a", "b", None]], 0.5, ("a", "")),
        ([["a", "a", "b", None]], 0.6, (None, FEW)),  # 2 of 4, not 2 of 3
        ([["a", "b", "b", "a"]], 0.0, (None, TIE)),
        ([[None, None]], 0.0, (None, NONE)),
        ([["Yes.", "yes", "yes", "no"]], 0.75, ("yes", "")),
        ([["1,000", "1000.0", "$1000", "100"]], 0.75, ("1,000", "")),
        ([["A", "A", "B"], ["A", "C", "A"]], 0.5, ("A", "")),
        ([["A", "A", "B"], ["B", "B", "A"]], 0.5, (None, ORDER)),
        ([["A", "A", "B"], ["A", "B", "C"]], 0.5, (None, TIE)),
        ([["x"] * 11 + ["y"] * 9], 0.55, ("x", "")),
    ],
)
def test_an_answer_is_kept_if_enough_samples_agree_in_every_order(answers: Any, majority: float, kept: Any):
    assert decide(answers, majority) == kept


def test_numbers_are_compared_by_value_and_words_without_case_and_punctuation():
    assert len({canonical(text) for text in ("18", "18.00", "$18", " 18. ", "18 %", "0018")}) == 1
    assert canonical("1.5") != canonical("15")
    assert canonical("-3") != canonical("3")
    assert len({canonical(text) for text in ("-5", "-$5", "$-5", "\N{MINUS SIGN}5.0")}) == 1
    assert canonical("-0") == canonical("0") == canonical("0.00")
    others = {"-$5 a day": "$5 a day", "-5 apples": "5 apples", "1.5 kg": "15 kg", "1/2": "12", "3:30": "330"}
    others |= {"(-1, 2)": "(1, 2)", "x = -3": "x = 3", "10-12": "1012", "$5": "-$5", ".5 kg": "5 kg", "1,5": "15"}
    others |= {"x - 3": "x + 3", "3 - x": "3x", "2^3": "23", "3+4": "34", "- 5 apples": "5 apples", "x > 3": "x < 3"}
    assert [one for one, other in others.items() if canonical(one) == canonical(other)] == []
    assert canonical("It is 3:30, p.m.") == canonical("it is 3:30 pm")
    assert canonical("Covid-19") == canonical("covid19")
    assert canonical("1,000 apples") == canonical("1000 apples.")
    assert canonical("(1,2)") == canonical("(1, 2)")
    assert canonical("x = -3") == canonical("x=-3")
    assert canonical("**42.0**") == canonical("+42") == "42"
    assert canonical("Yes!") == canonical("yes")
    assert canonical("?") != canonical("!")


def test_choices_change_places_and_are_told_by_letter_or_text():
    assert shown(CHOICES, 0) == "Which runs?\nA. a tree\nB. cat\nC. stone"
    assert shown(CHOICES, 1) == "Which runs?\nA. cat\nB. stone\nC. a tree"
    found = {
        text: original_letter(text, CHOICES, 1) for text in ("A", "(c)", "B. stone", "CAT", "a tree", "D", "a dog")
    }
    assert found == {"A": "B", "(c)": "A", "B. stone": "C", "CAT": "B", "a tree": "A", "D": None, "a dog": None}


@pytest.mark.parametrize(
    ("choices", "found", "letter"),
    [
        (["-4", "4"], "4", "B"),
        (["15", "1.5"], " 1.5 ", "B"),
        (["x2", "x^2"], "x^2", "B"),
        (["-", "+"], "+", "B"),
        (["yes", "Yes!"], "YES", None),
        (["yes", "no"], "No.", "B"),
        (["18", "20"], "$18.00", "A"),
        (["15", "2"], "1.5", None),
        (["4", "5"], "-4", None),
        (["+", "none"], "-", None),
    ],
)
def test_a_choice_is_named_by_its_very_text_before_one_that_means_the_same(choices, found: str, letter: str | None):
    assert original_letter(found, {**CHOICES, "choices": choices}, 0) == letter


@pytest.mark.parametrize(
    ("chain", "response", "answer"),
    [
        ("chain_of_thought", "First, the answer is no.\nAfter all, the answer is yes. I am sure.", "yes"),
        ("chain_of_thought", "So 3 + 0.5 = 3.5. The answer is 3.5.", "3.5"),
        ("chain_of_thought", "THE ANSWER IS: y a", "y a"),
        ("chain_of_thought", "I do not know.", None),
        ("direct", " yes.\n", "yes"),
        ("direct", "One: heads.\nThe answer is no.", "no"),
        ("answer_alone", "12", "12"),
    ],
)
def test_patterns_find_the_last_answer(chain: str, response: str, answer: str | None):
    assert group_in(PromptChain.model_validate(chain).answer, response) == answer


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("system2=chain_of_thougt", "did you mean `chain_of_thought`?"),
        ("system2={steps: {a: '{b}'}, answer: '(x)'}", r"step 'a' reads {b}, which is no step before"),
        ("system2={steps: {a: 'Say.'}, answer: '(x)'}", "step 'a' reads nothing"),
        ("system2={steps: {a: '{question}'}, answer: 'x'}", "'x' has 0 groups"),
        ("system1=system2_attention", "system1 is system2_attention, with 2 steps"),
        ("tokenizer=null", "neither weights nor a tokenizer"),
        ("training=null", "`training` and `data.instructions` go together"),
        ("data.test.coin_flip.rows=[7,7]", r"rows \[7, 7\] holds none"),
        ("asking.strategy=greedy", "greedy always gives .*; set self_consistency.samples and asking.test_samples to 1"),
        (f"reasoner={REASONER[:-1]}, temperature: 0}}", "temperature: 0 always gives the same answer; set self"),
        (
            f"reasoner={REASONER[:-1]}, api_key_variable: NO_KEY}}",
            "reasoner.api_key_variable: the environment has no NO_",
        ),
        (f"reasoner={REASONER[:-1]}, refusals: []}}", "reasoner.refusals: unknown key"),
        ("runtime.teacher_zero_stage=3", "learns from a teacher, so runtime.teacher_zero_stage would do nothing"),
        ("runtime.processes=3", r"distillation.batch_size \(32\) cannot be divided"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused(override: str, words: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=words):
        load_system2("configs/system2.yaml", [override])


def test_the_reasoner_of_the_documentation_is_valid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("REASONER_KEY", "any")
    example = (ROOT / "docs" / "system2.md").read_text(encoding="utf-8").split("```yaml\nreasoner:")[1].split("```")[0]
    given = json.dumps(yaml.safe_load(f"reasoner:{example}")["reasoner"])
    greedy = ("asking.strategy=greedy", "asking.test_samples=1")  # the reasoner draws its own samples
    assert load_system2("configs/system2.yaml", [f"reasoner={given}", *greedy]).reasoner is not None


def question_sets(folder: Path, part: str, asked: list[dict], test: Path | None = None, **record: Any) -> Path:
    """Read rows as the set `toy`; return the output folder."""
    path = write_lines(folder / "rows.jsonl", asked)
    stage = QuestionSets.model_validate({"part": part, "sets": {"toy": QuestionSet(source=Source(path="x"), **record)}})
    return run_stage(stage, {"questions/toy": path} | ({"test": test} if test else {}), folder / "read")[0]


def test_questions_of_the_test_and_repeated_ones_are_not_learnt_from(tmp_path: Path):
    test = question_sets(
        tmp_path / "test", "test", [{"question": "What  runs?", "answer": "x #### 7"}], answer="#### (.+)"
    )
    assert read_lines(test / "toy.jsonl")[0]["references"] == ["7"]
    rows = [{"question": text} for text in ("what runs?", "Who sings?", "Who sings?", "Who sleeps?")]
    kept = read_lines(question_sets(tmp_path / "unlabelled", "unlabelled", rows, test) / "toy.jsonl")
    assert [(row["index"], row["instruction"], row["references"]) for row in kept] == [
        (0, "Who sings?", []),
        (1, "Who sleeps?", []),
    ]


@pytest.mark.parametrize(
    ("row", "record", "words"),
    [
        ({"question": "Why?"}, {}, "rows.jsonl:1: no field `answer`"),
        ({"question": "Why?", "answer": " "}, {}, "`answer` is empty"),
        ({"question": "Why?", "answer": "7"}, {"answer": "#### (.+)"}, "no match of the set's `answer` pattern: '7'"),
        ({"question": "Why?", "answer": "E", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}, {}, "no label"),
        ({"question": "Why?", "answer": "7"}, {"rows": (0, 2)}, "go beyond the 1 rows"),
        ({"question": "", "answer": "7"}, {}, "`question` is empty"),
    ],
)
def test_test_questions_need_answers(row: dict, record: dict, words: str, tmp_path: Path):
    with pytest.raises(StageError, match=re.escape(words)):
        question_sets(tmp_path, "test", [row], **record)


def asking(**changes: Any) -> Ask:
    fields = {"part": "unlabelled", "chain": CHAIN, "samples": 3, "orders": 1, "seed": 1, "template": Template(**PLAIN)}
    fields |= {"precision": "float32", "max_prompt_tokens": 12, "max_tokens": 16, "max_response_tokens": None}
    return Ask.model_validate({**fields, **changes})


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of whole words, questions, and a model that mostly says `cat` and ends, or goes on."""
    folder = tmp_path_factory.mktemp("toy")
    rows = [{"question": f"say {word} now"} for word in WORDS[:4]]
    model = make_constant_model(folder / "model", {"cat": 0.3, "dog": 0.1})
    changed = GPT2LMHeadModel.from_pretrained(model)
    with torch.no_grad():
        changed.transformer.wte.weight[:2, 0] = torch.tensor([0.3, 1e-9]).log()  # it ends, and says no unknown word
    changed.save_pretrained(model)
    inputs = {"tokenizer": make_tokenizer(folder / "tokenizer"), "model": model}
    return inputs | {"questions": question_sets(folder, "unlabelled", rows)}


def answers_of(stage: Ask, inputs: dict[str, Path], folder: Path) -> list[Answer]:
    with alone():
        output, _ = run_stage(stage, inputs, folder)
    return [Answer(**line) for line in read_lines(output / "answers.jsonl")]


def test_each_step_reads_the_responses_before_and_all_tokens_count(toy: dict[str, Path], tmp_path: Path):
    chain = {"steps": {"first": "{question}", "second": "{first} {question}"}, "answer": "(cat|dog)"}
    found = answers_of(asking(chain=chain, max_tokens=40, max_response_tokens=8), toy, tmp_path)
    assert [(a.index, a.sample) for a in found] == [(index, sample) for index in range(4) for sample in range(3)]
    assert len({json.dumps(a.responses) for a in found}) > 6, "every answer is drawn by itself"
    for a in found:
        words = [len(text.split()) for text in a.responses.values()]
        if a.problem == CUT:
            assert a.answer is None
            assert a.tokens == sum(words[:-1]) + len(words[:-1]) + 8
        else:
            assert a.tokens == sum(words) + 2, "with the end of each response"
            first = re.search("cat|dog", a.responses["second"])
            assert (a.answer, a.problem) == ((first[0], "") if first else (None, UNREAD))
    assert {a.problem for a in found} >= {"", CUT}


def test_a_prompt_that_outgrows_the_model_ends_its_answer_alone(toy: dict[str, Path], tmp_path: Path):
    chain = {
        "steps": {"first": "{question}", "second": "{first} {first} {first} {first} {question}"},
        "answer": "(cat|dog)",
    }
    found = answers_of(asking(chain=chain, max_tokens=16, max_response_tokens=9), toy, tmp_path)
    longer = [a for a in found if a.problem == LONG]
    assert longer
    assert all(4 * len(a.responses["first"].split()) + 3 >= 16 for a in longer)
    assert any(a.answer for a in found)


READS: dict[str, dict[str, set[str]]] = {
    "direct": {"response": {"question"}},
    "answer_alone": {"response": {"question"}},
    "chain_of_thought": {"response": {"question"}},
    "rephrase_and_respond": {"response": {"question"}},
    "rephrase_and_respond_2": {"rephrased": {"question"}, "response": {"question", "rephrased"}},
    "system2_attention": {"unbiased": {"question"}, "response": {"unbiased"}},
    "branch_solve_merge": {
        "branches": {"question"},
        "solved": {"question", "branches"},
        "response": {"question", "solved"},
    },
}
"""Texts that stand in the prompt of each step, by the known way."""


class Script:
    """A responder that says which step it responds to and, in the last, an answer."""

    limits: ClassVar[str] = "nothing"

    def __init__(self, steps: list[str]) -> None:
        self.steps = steps
        self.prompts: dict[str, str] = {}

    def respond(self, asked: Sequence[tuple[Answer, str]], report: Callable[[int], None]) -> list[Responded]:
        ((answer, prompt),) = asked
        step = self.steps[len(answer.responses)]
        self.prompts[step] = prompt
        return [Responded("I add. The answer is $7.50." if step == self.steps[-1] else f"This is {step}.", tokens=3)]


@pytest.mark.parametrize("name", known_chains())
def test_every_known_way_reads_its_earlier_steps_and_finds_the_answer(name: str, tmp_path: Path):
    row = {"index": 0, "instruction": "How much is it?", "choices": [], "references": []}
    asked = {"part": "test", "chain": name, "samples": 1, "orders": 1, "seed": 1}
    script = Script(list(known_chains()[name]["steps"]))
    ask_all(Asking.model_validate(asked), tmp_path, {("toy", 0): row}, script)
    (answer,) = read_answers(tmp_path)
    assert (answer.answer, answer.tokens) == ("$7.50", 3 * len(script.steps))
    texts = {"question": "How much is it?", **{step: f"This is {step}." for step in script.steps[:-1]}}
    found = {step: {of for of, text in texts.items() if text in prompt} for step, prompt in script.prompts.items()}
    assert found == READS[name]


def test_what_an_earlier_attempt_finished_is_not_asked_again(toy: dict[str, Path], tmp_path: Path):
    with alone():
        first, _ = run_stage(asking(), toy, tmp_path)
        again = tmp_path / "again"
        again.mkdir()
        inputs = {**toy, "model": tmp_path / "no model is needed"}
        run(Job(kind="ask", settings=asking(), inputs=inputs, output=again, work=tmp_path / "work"))
    assert (again / "answers.jsonl").read_bytes() == (first / "answers.jsonl").read_bytes()


def test_two_processes_give_the_answers_of_one(toy: dict[str, Path], tmp_path: Path):
    for processes in (1, 2):
        spec = write_job(tmp_path / str(processes), asking(), toy, processes=processes)
        done = run_worker(spec, processes)
        assert done.returncode == 0, done.stdout
    one, two = ((tmp_path / str(n) / "output" / "answers.jsonl").read_bytes() for n in (1, 2))
    assert one == two


def test_three_responses_are_shown_if_no_answer_can_be_read(toy: dict[str, Path], tmp_path: Path):
    chain = {**CHAIN, "answer": "answer is (.+)"}
    with pytest.raises(StageError, match=r"none of the first 12 answers has a final answer") as refused:
        answers_of(asking(chain=chain), toy, tmp_path)
    assert len(re.findall(r"^  '", str(refused.value), re.MULTILINE)) == 3
    assert "'answer is (.+)'" in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"max_prompt_tokens": 2},
            "4 questions make prompts of more than 2 tokens, the first is number 0 of toy",
        ),
        ({"orders": 2}, "reorderings is 1, but no question of data.unlabelled has choices"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_is_loaded(
    changes: dict, words: str, toy: dict[str, Path], tmp_path: Path
):
    with pytest.raises(StageError, match=words):
        answers_of(asking(**changes), {**toy, "model": tmp_path / "nowhere"}, tmp_path)


def kept(
    folder: Path, toy: dict[str, Path], answers: list[Answer], validation_size: int = 1, tokens: int = 16
) -> tuple[Path, dict]:
    write_lines(folder / "answers" / "answers.jsonl", [vars(a) for a in answers])
    stage = KeepConsistent(
        prompt="{question}",
        majority=0.5,
        template=Template() if "chat" in str(toy["tokenizer"]) else Template(**PLAIN),
        max_prompt_tokens=tokens,
        max_tokens=2 * tokens,
        validation_size=validation_size,
        seed=1,
    )
    return run_stage(stage, {**toy, "answers": folder / "answers"}, folder / "kept")


def test_final_answers_alone_are_learnt_and_the_dropped_are_counted(toy: dict[str, Path], tmp_path: Path):
    said = [["cat", "cat", "dog"], ["dog", "dog", None], ["cat", "dog", None], [None, None, None]]
    answers = [
        Answer("toy", index, 0, sample, answer, responses={"response": "red red"})
        for index, of in enumerate(said)
        for sample, answer in enumerate(of)
    ]
    output, summary = kept(tmp_path, toy, answers)
    rows = pd.concat([pd.read_parquet(output / f"{part}.parquet") for part in ("train", "validation")])
    learnt = {row["prompt"]: row["turns"][0]["text"] for _, row in rows.iterrows()}
    assert learnt == {"say red now>": "cat", "say blue now>": "dog"}
    assert (summary["kept"], summary[f"dropped/{TIE}"], summary[f"dropped/{NONE}"]) == (2, 1, 1)
    with pytest.raises(StageError, match=r"(?s)2 answers are kept of 4, .* takes 2: none .*two answers as common"):
        kept(tmp_path / "few", toy, answers, validation_size=2)


def test_a_chat_template_never_sees_answers_that_were_dropped(toy: dict[str, Path], tmp_path: Path):
    chat = {**toy, "tokenizer": save_chat_tokenizer(tmp_path / "chat", TURNS)}
    answers = [Answer("toy", index, 0, 0, answer) for index, answer in enumerate(["cat", None, "dog", "bird"])]
    output, summary = kept(tmp_path, chat, answers, tokens=60)
    rows = pd.concat([pd.read_parquet(output / f"{part}.parquet") for part in ("train", "validation")])
    assert sorted(row["turns"][0]["text"] for _, row in rows.iterrows()) == ["bird", "cat", "dog"]
    assert (summary["kept"], summary[f"dropped/{NONE}"]) == (3, 1)
    whole, summary = kept(tmp_path / "whole", chat, [a for a in answers if a.answer], tokens=60)
    assert summary == {"questions": 3, "kept": 3}
    assert pd.read_csv(whole / "dropped.csv", index_col=0)["total"].to_dict() == {"total": 0}


def test_a_plan_counts_answers_and_their_tokens(toy: dict[str, Path], tmp_path: Path):
    rows = [{"question": f"say {word} now", "answer": f"{word} cat"} for word in WORDS[:4]]
    parts = {"unlabelled": toy["questions"], "test": question_sets(tmp_path, "test", rows)}
    data = {name: {"toy": {"source": {"path": "rows.jsonl"}}} for name in parts}
    config = System2.model_validate(
        {
            "name": "toy",
            "data": {**data, "template": PLAIN, "max_prompt_tokens": 12, "max_tokens": 16, "validation_size": 1},
            "model": {"path": "model"},
            "distillation": {"learning_rate": 1e-3, "batch_size": 4, "steps": 2, "evaluate_every": 2},
        }
    )
    limits = {"template": config.data.template, "max_tokens": 16}
    prepared = Prepare(tokenizer="model", models={"model": None}, generation_tokens=16, **limits)
    found: list[tuple[Stage, Artifact]] = [
        (QuestionSets.model_validate({"part": part, "sets": {}}), kept_at(path)) for part, path in parts.items()
    ]
    subject = of_system2(config, [*found, (prepared, kept_at(toy["tokenizer"].parent))], tmp_path)
    asked = subject.amounts(asking(chain={**CHAIN, "steps": {"a": "well {question}", "b": "{a}"}}))
    assert (asked.examples, asked.prompt, asked.response) == (4 * 3 * 2, 4, 12), "as long as 16 tokens leave room for"
    method = training_only(config.distillation)
    learnt = Train(role="system1", method=method, architecture=None, max_tokens=16, validation_prompts=1, seed=1)
    amounts = subject.amounts(learnt)
    assert (amounts.rows, amounts.validation, amounts.prompt, amounts.response) == (3, 1, 3, 3), "two words and the end"
    timed = pd.read_parquet(subject.examples / "train.parquet")
    assert timed["response_ids"].map(len).tolist() == [3] * 4


def kept_at(path: Path) -> Artifact:
    return Artifact(kind="", key="", path=str(path), digest="")


def of(right: list[float], tokens: int) -> Measured:
    return Measured([Answer("toy", 0, 0, 0, "x", tokens=tokens)], {"toy": np.array(right)})


def test_accuracy_is_the_share_of_right_samples_of_each_question():
    questions = {"toy": [{"references": ["18"]}, {"references": ["yes"]}]}
    said = [(0, "18.0"), (0, "80"), (1, None), (1, "Yes."), (1, "yes"), (1, "no")]
    found = measure(questions, [Answer("toy", index, 0, 0, answer) for index, answer in said])
    assert found.accuracy["toy"].tolist() == [50, 50]
    assert found.estimate("mean") == Estimate(50, None, None)


def test_the_page_says_whether_distillation_worked():
    slow, before = of([100.0] * 20, 60), of([0.0] * 18 + [100.0] * 2, 4)
    worked = {BEFORE: before, SLOW: slow, AFTER: of([100.0] * 19 + [0.0], 3)}
    first, last = verdict(worked, compare(worked))
    assert first == ("Distillation worked: System 1 has 95.0 % right after it, 10.0 % before, System 2 100.0 %.")
    assert last.startswith("An answer takes 3.0 tokens, 5\u00a0% of System 2's 60.0; ")
    differences = compare(worked)
    assert [differences[pair].value for pair in PAIRS] == [85, -5, 90]
    failed = {**worked, AFTER: before}
    assert verdict(failed, compare(failed))[0].startswith(
        "Distillation did not work: System 1 after is not better than before (+0.0, p = 1.000)."
    )
    worse = {BEFORE: slow, SLOW: slow, AFTER: before}
    words = verdict(worse, compare(worse))
    assert words[0].startswith("Distillation did not work: System 1 after is worse than before (−90.0 ")
    assert words[1].startswith("System 2 is not better than System 1 before")


def test_the_embedded_questions_are_those_of_their_generator(tmp_path: Path):
    folder = ROOT / "data" / "system2"
    subprocess.run([sys.executable, folder / "generate.py", "--out", tmp_path], check=True, timeout=120)
    files = {path.name: path for path in folder.glob("*.jsonl")}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert all((tmp_path / name).read_bytes() == path.read_bytes() for name, path in files.items())
    rows = {name: read_lines(path) for name, path in files.items()}
    lessons = [row["instruction"] for row in rows.pop("lessons.jsonl")]
    asked = {name: {row["question"] for row in of} for name, of in rows.items()}
    slow = PromptChain.model_validate("chain_of_thought").steps["response"].replace("{question}", "")
    assert sum(text.endswith(slow) for text in lessons) == 4000
    asked["lessons"] = {text.removesuffix(slow) for text in lessons}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values())), "no question twice"
    for row in rows["last_letters_test.jsonl"]:
        names = row["question"].removeprefix("Join the last letters of ").removesuffix(".").split()
        assert row["answer"] == "".join(name[-1] for name in names)
    for row in rows["coin_flip_test.jsonl"]:
        assert row["answer"] == ("no" if row["question"].count("flips it") % 2 else "yes")
