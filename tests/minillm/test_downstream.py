"""lm-evaluation-harness itself on small models, against results counted or computed here."""

import json
import math
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from minillm.config import Template
from minillm.data.chat import ChatTemplate
from minillm.data.tables import read_records
from minillm.durable import write_atomically
from minillm.errors import StageError
from minillm.evaluation.downstream.answering import language_model, scores, table
from minillm.evaluation.downstream.checks import check
from minillm.evaluation.downstream.harness import PLAN, LocalRows, Plan, beneath, load, rows_file, task_manager
from minillm.evaluation.downstream.local_rows import deal, read_rows
from minillm.evaluation.downstream.tasks import obtain, require_chat_templates, require_known
from minillm.models.batches import make_batch
from minillm.models.causal_lm import build_model
from minillm.models.output_head import output_head, response_hidden
from minillm.models.tokenizers_bpe import train_bpe
from minillm.objectives.vocabulary import token_log_probs
from minillm.stages.base import Job
from minillm.stages.measuring import DownstreamScore
from minillm.stages.reading import SIZES, TOKENIZER, DownstreamTasks
from tests.minillm.direct import read_lines, real_data, run_stage, write_lines
from tests.minillm.hub import Hub, serve
from tests.minillm.jobs import run_worker, write_job
from tests.minillm.models_in_small import small_model
from tests.minillm.templates import TURNS, chat_tokenizer

ANSWERS = [["red", "blue", "cat"], ["a blue bird", "blue", "dog"], ["cat", "dog", "blue"], ["red cat", "bird", "blue"]]
ARC = [
    {
        "id": str(number),
        "question": f"Which one is number {number}?",
        "choices": {"text": choices, "label": ["A", "B", "C"]},
        "answerKey": key,
    }
    for number, (choices, key) in enumerate(zip(ANSWERS, "BBAC", strict=True))
]
ARC_FILE = "arc/arc_easy.yaml"
MC1_FILE = "truthfulqa/truthfulqa_mc1.yaml"
POSITIONS = 1024


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Make a byte-level tokenizer with a few whole words and the letters of MMLU's answers."""
    words = " red blue cat dog bird A B C D 2 Question: Answer:"
    return train_bpe([words * 20], 400)


def constant_model(favourite: int, lead: float, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a model whose logits are always `lead` for one token and 0 for all others."""
    architecture = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": POSITIONS}
    model: Any = build_model(architecture, tokenizer, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.bias[0] = 1.0
        model.transformer.wte.weight[favourite, 0] = lead  # the head is tied to it
    return model


def prepared(folder: Path, tokenizer: PreTrainedTokenizerBase, positions: int | None = POSITIONS) -> Path:
    tokenizer.save_pretrained(folder / TOKENIZER)
    facts = {role: {"positions": positions} for role in ("teacher", "student")}
    (folder / "models.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def planned(
    folder: Path,
    rows: list[dict],
    *,
    task: str = "arc_easy",
    file: str = ARC_FILE,
    examples: list[dict] | None = None,
    few_shot: int | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Run the stage downstream_tasks for one task with local rows; return its output."""
    write_lines(rows_file(folder, task, "test"), rows)
    if examples:
        write_lines(rows_file(folder, task, "examples"), examples)
    local = {task: LocalRows(file=file, examples=bool(examples), changes=changes or {})}
    plan = Plan(harness="0", tasks=(task,), few_shot=few_shot, folders=(str(Path(file).parent),), local=local)
    write_atomically(folder / PLAN, plan.model_dump_json())
    return folder


def answered(
    folder: Path,
    tasks: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    name: str = "run",
    template: Template | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Run the stage downstream; return its output folder and the rows of table.json."""
    model.save_pretrained(folder / "model")
    inputs = {"model": folder / "model", "tokenizer": prepared(folder / "prepared", tokenizer) / TOKENIZER}
    inputs["tasks"] = tasks
    stage = DownstreamScore(role="x", limit=limit, template=template, precision="float32")
    output, summary = run_stage(stage, inputs, folder / name)
    rows = json.loads((output / "table.json").read_text(encoding="utf-8"))["tasks"]
    assert all(summary[f"downstream/{task}"] == row["value"] for task, row in rows.items())
    return output, rows


def samples(output: Path, task: str) -> list[list[float]]:
    """Return the log-likelihood of each choice, by question."""
    return [[answer[0] for answer in row["filtered_resps"]] for row in read_lines(output / "samples" / f"{task}.jsonl")]


def loaded(folder: Path, tasks: Path) -> tuple[Any, LocalRows]:
    """Return the only task of a plan, and its local rows."""
    folder.mkdir()
    plan = Plan.model_validate_json((tasks / PLAN).read_text(encoding="utf-8"))
    (name,) = plan.tasks
    return load(task_manager(plan, tasks, folder), name, plan.few_shot)["tasks"][name], plan.local[name]


def test_accuracy_is_what_one_counts(tmp_path, tokenizer):
    (blue,) = tokenizer.encode(" blue")
    _, rows = answered(tmp_path, planned(tmp_path / "tasks", ARC), constant_model(blue, 9.0, tokenizer), tokenizer)
    row = rows["arc_easy"]
    # it says blue, which is right for B, B and C, but not for A
    assert row["value"] == 3 / 4
    assert row["stderr"] == pytest.approx(math.sqrt(3 / 4 * 1 / 4 / 3))
    assert {name: row[name] for name in ("metric", "version", "shots", "questions", "cut", "higher_is_better")} == {
        "metric": "acc",
        "version": "1.0",
        "shots": 0,
        "questions": 4,
        "cut": 0,
        "higher_is_better": True,
    }
    assert set(row["scores"]) == {"acc", "acc_norm"}


@pytest.mark.parametrize(("shots", "padding", "name"), [(0, 0, "gpt2"), (1, 37, "gpt2"), (0, 37, "gptj")])
def test_log_likelihoods_are_our_own(tmp_path, tokenizer, shots, padding, name):
    """Probabilities are over the tokenizer's entries, whatever rows the embedding has; GPT-J's head has a bias."""
    example = {**ARC[0], "question": "What sings?", "choices": {"text": ["bird", "cat"], "label": ["A", "B"]}}
    example["answerKey"] = "A"
    tasks = planned(tmp_path / "tasks", ARC, examples=[example], few_shot=shots)
    model = small_model(name, len(tokenizer) + padding, spread=0.3)
    output, rows = answered(tmp_path, tasks, model, tokenizer)
    assert rows["arc_easy"]["shots"] == shots
    before = "Question: What sings?\nAnswer: bird\n\n" * shots
    for row, of_choices in zip(ARC, samples(output, "arc_easy"), strict=True):
        prompt = tokenizer.encode(f"{before}Question: {row['question']}\nAnswer:")
        continuations = [tokenizer.encode(f" {choice}") for choice in row["choices"]["text"]]
        assert of_choices == pytest.approx(log_likelihoods(model, tokenizer, prompt, continuations), abs=1e-4)


def log_likelihoods(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: list[int], continuations: list[list[int]]
) -> list[float]:
    batch = make_batch([prompt] * len(continuations), continuations)
    with torch.no_grad():
        hidden = response_hidden(model.eval(), batch)
    tokens = batch.response[batch.response_mask]
    log_probs, _ = token_log_probs(hidden, output_head(model, len(tokenizer)), tokens)
    return [float(part.sum()) for part in log_probs.split([len(ids) for ids in continuations])]


def test_questions_are_asked_as_a_chat_model_is_asked(tmp_path):
    """As messages, with the system message and the example as turns, and each special token once."""
    tokenizer = chat_tokenizer(TURNS)
    example = {**ARC[0], "question": "What sings?", "choices": {"text": ["bird", "cat"], "label": ["A", "B"]}}
    tasks = planned(tmp_path / "tasks", ARC[:2], examples=[{**example, "answerKey": "A"}], few_shot=1)
    model = small_model("gpt2", len(tokenizer), spread=0.3)
    template = Template(chat=True, system="Be brief.")
    output, _ = answered(tmp_path, tasks, model, tokenizer, template=template)
    for row, of_choices in zip(ARC, samples(output, "arc_easy"), strict=False):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Question: What sings?\nAnswer:"},
            {"role": "assistant", "content": "bird"},
            {"role": "user", "content": f"Question: {row['question']}\nAnswer:"},
        ]
        _, prompt = ChatTemplate(tokenizer, [0]).prompt(messages)
        # The harness counts white space at the end of a prompt, here the line end, to what follows it.
        continuations = [[prompt[-1], *tokenizer.encode(choice)] for choice in row["choices"]["text"]]
        assert of_choices == pytest.approx(log_likelihoods(model, tokenizer, prompt[:-1], continuations), abs=1e-4)


def test_a_run_whose_prompts_are_a_text_asks_no_questions_in_a_chat_template(tmp_path, tokenizer):
    with pytest.raises(StageError, match=r"downstream\.chat_template is true, but the run's prompts are a text"):
        require_chat_templates([prepared(tmp_path / "prepared", tokenizer)], Template())


def test_questions_that_a_model_sees_only_in_part_are_counted(tmp_path, tokenizer):
    long = {**ARC[0], "question": "Which? " * POSITIONS}
    (blue,) = tokenizer.encode(" blue")
    tasks = planned(tmp_path / "tasks", [*ARC, long])
    _, rows = answered(tmp_path, tasks, constant_model(blue, 9.0, tokenizer), tokenizer)
    assert rows["arc_easy"]["cut"] == 1
    assert rows["arc_easy"]["value"] == 4 / 5


def test_an_answer_longer_than_the_model_sees_is_refused(tmp_path, tokenizer):
    endless = {**ARC[0], "choices": {"text": ["red " * POSITIONS, "blue"], "label": ["A", "B"]}}
    tasks = planned(tmp_path / "tasks", [*ARC, endless])
    with pytest.raises(StageError, match="arc_easy: a question cannot be put to this model, which sees 1024 tokens"):
        answered(tmp_path, tasks, constant_model(0, 0.0, tokenizer), tokenizer)


def test_a_limit_takes_the_first_questions(tmp_path, tokenizer):
    (blue,) = tokenizer.encode(" blue")
    model = constant_model(blue, 9.0, tokenizer)
    _, rows = answered(tmp_path, planned(tmp_path / "tasks", ARC), model, tokenizer, limit=2)
    assert (rows["arc_easy"]["questions"], rows["arc_easy"]["value"]) == (2, 1.0)


def test_results_tell_nothing_of_the_machine(tmp_path, tokenizer):
    tasks = planned(tmp_path / "tasks", ARC)
    output, _ = answered(tmp_path, tasks, small_model("gpt2", len(tokenizer)), tokenizer)
    written = [path for path in output.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"results.json", "table.json", "arc_easy.jsonl"}
    for path in written:
        assert not {str(tmp_path), str(Path.home()), socket.gethostname()} & set(
            path.read_text(encoding="utf-8").split('"')
        ), path
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_finished_tasks_are_not_answered_again(tmp_path, tokenizer):
    tasks = planned(tmp_path / "tasks", ARC)
    model = small_model("gpt2", len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    inputs = {"model": tmp_path / "model", "tokenizer": prepared(tmp_path / "prepared", tokenizer) / TOKENIZER}
    inputs["tasks"] = tasks
    spec = write_job(tmp_path / "job", DownstreamScore(role="x", limit=1, template=None, precision="float32"), inputs)
    assert run_worker(spec).returncode == 0
    finished = spec.parent / "arc_easy.json"
    part = json.loads(finished.read_text(encoding="utf-8"))
    part["results"]["arc_easy"]["acc,none"] = 0.125
    finished.write_text(json.dumps(part), encoding="utf-8")
    (spec.parent / "output" / "table.json").unlink()
    assert run_worker(spec).returncode == 0
    assert json.loads((spec.parent / "summary.json").read_text(encoding="utf-8"))["downstream/arc_easy"] == 0.125


def test_a_task_that_wants_no_examples_gets_none(tmp_path, tokenizer):
    """Return real questions of TruthfulQA in the form of its data set on the hub."""
    rows = []
    for row in read_lines(real_data() / "downstream" / "truthfulqa.jsonl")[:40]:
        choices = [row["Best Answer"], *(answer.strip() for answer in row["Incorrect Answers"].split(";"))]
        labels = [1, *[0] * (len(choices) - 1)]
        rows.append({"question": row["Question"], "mc1_targets": {"choices": choices, "labels": labels}})
    tasks = planned(tmp_path / "tasks", rows, task="truthfulqa_mc1", file=MC1_FILE, few_shot=5)
    model = constant_model(0, 0.0, tokenizer)
    output, found = answered(tmp_path, tasks, model, tokenizer)
    assert found["truthfulqa_mc1"]["shots"] == 0
    # every token has the same probability, so the first of the shortest answers is the likeliest
    lengths = [[len(tokenizer.encode(f" {choice}")) for choice in row["mc1_targets"]["choices"]] for row in rows]
    expected = [[-length * math.log(len(tokenizer)) for length in of_row] for of_row in lengths]
    for got, want in zip(samples(output, "truthfulqa_mc1"), expected, strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    right = [of_row.index(min(of_row)) == 0 for of_row in lengths]
    assert found["truthfulqa_mc1"]["value"] == pytest.approx(sum(right) / len(right))


def test_generated_answers_are_scored_by_every_filter(tmp_path, tokenizer):
    rows = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in (1, 2)]
    tasks = planned(tmp_path / "tasks", rows, task="gsm8k", file="gsm8k/gsm8k.yaml", few_shot=0)
    (two,) = tokenizer.encode(" 2")
    _, found = answered(tmp_path, tasks, constant_model(two, 9.0, tokenizer), tokenizer)
    # it says " 2 2 2 …", of which the flexible filter takes the last number, and never "#### 2"
    kept = {metric: value for metric, (value, _) in found["gsm8k"]["scores"].items()}
    assert kept == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 0.5}
    assert found["gsm8k"]["higher_is_better"] is True


def test_a_generated_answer_is_subject_to_this_runs_settings_alone(tmp_path, tokenizer):
    """A checkpoint's penalties and rows of its embedding without a token do not count; any end token ends an answer."""
    rows = [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}]
    tasks = planned(tmp_path / "tasks", rows, task="gsm8k", file="gsm8k/gsm8k.yaml", few_shot=0)
    (two,) = tokenizer.encode(" 2")
    model = constant_model(two, 9.0, tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 8)
    table: Any = model.get_input_embeddings()
    with torch.no_grad():
        table.weight[len(tokenizer) :, 0] = 20.0
    model.generation_config = GenerationConfig(repetition_penalty=1e3, forced_eos_token_id=0, eos_token_id=0)
    output, found = answered(tmp_path, tasks, model, tokenizer)
    assert found["gsm8k"]["value"] == 0.0
    (row,) = [row for row in read_lines(output / "samples" / "gsm8k.jsonl") if row["filter"] == "flexible-extract"]
    assert row["filtered_resps"] == ["2"], "it says 2 and nothing else"
    settings = DownstreamScore(role="x", limit=None, template=None, precision="float32")
    folder = prepared(tmp_path / "with_ends", tokenizer) / TOKENIZER
    GenerationConfig(eos_token_id=[0, two]).save_pretrained(folder)
    job = Job(
        kind="downstream",
        settings=settings,
        inputs={"model": tmp_path / "model", "tokenizer": folder},
        output=tmp_path,
        work=tmp_path,
    )
    asked = torch.tensor([[two, two]])
    assert language_model(job, settings).model.generate(asked, max_new_tokens=9).tolist() == [[two, two, two]]


def test_perplexity_of_running_text(tmp_path, tokenizer):
    text = "red cat and blue bird"
    tasks = planned(tmp_path / "tasks", [{"page": text}], task="wikitext", file="wikitext/wikitext.yaml")
    _, found = answered(tmp_path, tasks, constant_model(0, 0.0, tokenizer), tokenizer)
    nats = len(tokenizer.encode(text)) * math.log(len(tokenizer))
    assert found["wikitext"]["metric"] == "word_perplexity"
    assert found["wikitext"]["value"] == pytest.approx(math.exp(nats / 5), rel=1e-5)
    assert found["wikitext"]["scores"]["byte_perplexity"][0] == pytest.approx(math.exp(nats / len(text)), rel=1e-5)
    assert (found["wikitext"]["higher_is_better"], found["wikitext"]["stderr"]) == (False, None)


def test_real_files_through_both_stages_with_no_word_to_the_hub(tmp_path, tokenizer, monkeypatch):
    """Worker processes find and check the tasks, then answer them; the model answers C to all of MMLU."""
    data = real_data() / "downstream"
    sources = {
        "rows/arc_easy": "arc_easy_validation",
        "rows/arc_challenge": "arc_challenge_validation",
        "rows/hellaswag": "hellaswag_validation_1000",
        "rows/mmlu": "mmlu_validation_1000",
        "examples/mmlu": "mmlu_dev",
    }
    inputs = {name: data / f"{file}.jsonl" for name, file in sources.items()}
    changes: dict[str, dict] = {"arc_easy": {}, "arc_challenge": {}, "mmlu": {}}
    changes["hellaswag"] = {"process_docs": None, "doc_to_target": "{{gold}}"}
    tasks = DownstreamTasks(
        harness="0", tasks=tuple(changes), few_shot=0, template=None, parts={"mmlu": "subject"}, changes=changes
    )
    (letter,) = tokenizer.encode(" C")
    constant_model(letter, 9.0, tokenizer).save_pretrained(tmp_path / "model")
    checked = prepared(tmp_path / "prepared", tokenizer)
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.setblocking(False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "empty-cache"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        found = run_worker(write_job(tmp_path / "tasks", tasks, inputs | {"prepared/0": checked}))
        assert found.returncode == 0, found.stdout
        score = DownstreamScore(role="x", limit=5, template=None, precision="float32")
        inputs = {"model": tmp_path / "model", "tokenizer": checked / TOKENIZER, "tasks": tmp_path / "tasks" / "output"}
        done = run_worker(write_job(tmp_path / "score", score, inputs, micro_batch_size=32))
        assert done.returncode == 0, done.stdout
        with pytest.raises(BlockingIOError):
            hub.accept()
    rows = json.loads((tmp_path / "score" / "output" / "table.json").read_text(encoding="utf-8"))["tasks"]
    assert {name: row["questions"] for name, row in rows.items() if name != "mmlu"} == {
        "arc_easy": 5, "arc_challenge": 5, "hellaswag": 5
    }  # fmt: skip
    by_subject: dict[str, list[int]] = {}
    for record in read_records(data / "mmlu_validation_1000.jsonl"):
        by_subject.setdefault(record.value["subject"], []).append(record.value["answer"])
    first_five = [answer for answers in by_subject.values() for answer in answers[:5]]
    assert rows["mmlu"]["questions"] == len(first_five)
    assert rows["mmlu"]["value"] == pytest.approx(Counter(first_five)[2] / len(first_five))
    assert rows["hellaswag"]["version"] == "1.0"
    assert json.loads((tmp_path / "tasks" / "summary.json").read_text(encoding="utf-8"))["questions/mmlu"] == 1000


def test_a_task_without_local_rows_comes_from_the_hub(tmp_path, tokenizer, monkeypatch):
    description = "---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n"
    files = {}
    for split, rows in (("train", ARC[:1]), ("validation", ARC[:2]), ("test", ARC)):
        description += f"  - {{split: {split}, path: {split}.jsonl}}\n"
        files[f"{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files["README.md"] = f"{description}---\n".encode()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (blue,) = tokenizer.encode(" blue")
    constant_model(blue, 9.0, tokenizer).save_pretrained(tmp_path / "model")
    checked = prepared(tmp_path / "prepared", tokenizer)
    with serve(Hub({("datasets", "allenai/ai2_arc"): files})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        stage = DownstreamTasks(harness="0", tasks=("arc_easy",), few_shot=1, template=None, parts={}, changes={})
        found = run_worker(write_job(tmp_path / "tasks", stage, {"prepared/0": checked}))
        assert found.returncode == 0, found.stdout
        inputs = {"model": tmp_path / "model", "tokenizer": checked / TOKENIZER, "tasks": tmp_path / "tasks" / "output"}
        score = DownstreamScore(role="x", limit=None, template=None, precision="float32")
        done = run_worker(write_job(tmp_path / "score", score, inputs))
    assert done.returncode == 0, done.stdout
    row = json.loads((tmp_path / "score" / "output" / "table.json").read_text(encoding="utf-8"))["tasks"]["arc_easy"]
    assert (row["value"], row["questions"], row["shots"]) == (3 / 4, 4, 1)
    sizes = json.loads((tmp_path / "tasks" / "output" / SIZES).read_text(encoding="utf-8"))
    assert sizes == {"arc_easy": {"questions": 4, "shots": 1, "kind": "multiple_choice"}}, "a plan reads them"


def test_a_hub_out_of_reach_is_named_with_what_to_do(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty-cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    stage = DownstreamTasks(harness="0", tasks=("arc_easy",), few_shot=None, template=None, parts={}, changes={})
    spec = write_job(tmp_path / "tasks", stage, {"prepared/0": prepared(tmp_path / "prepared", tokenizer)})
    assert run_worker(spec).returncode == 3
    message = (spec.parent / "error.txt").read_text(encoding="utf-8")
    assert message.startswith("evaluation.downstream.tasks: arc_easy cannot be loaded (")
    assert "give its rows as evaluation.downstream.local.arc_easy.source" in message
    assert not (spec.parent / "output" / PLAN).exists()


@pytest.fixture(scope="module")
def index() -> Any:
    return TaskManager().task_index


def test_an_unknown_task_is_refused_with_near_names(index):
    require_known(["arc_easy", "mmlu", "ai2_arc"], index)
    with pytest.raises(StageError, match="no task 'arc_esy'; near names: arc_easy"):
        require_known(["mmlu", "arc_esy"], index)
    with pytest.raises(StageError, match="no task '&&&'; `lm_eval ls tasks` names all"):
        require_known(["&&&"], index)


def test_groups_and_tags_are_made_of_their_tasks(index):
    subjects = [d for d in beneath(index, "mmlu") if d.kind.name == "TASK"]
    assert len(subjects) == 57
    assert {d.cfg["dataset_name"] for d in subjects} >= {"abstract_algebra", "world_religions"}
    assert {"arc_easy", "arc_challenge"} <= {d.name for d in beneath(index, "ai2_arc")}
    assert [d.name for d in beneath(index, "hellaswag")] == ["hellaswag"]


def test_a_tag_keeps_its_members_where_one_of_them_has_local_rows(tmp_path):
    plan = Plan.model_validate_json((planned(tmp_path, ARC) / PLAN).read_text(encoding="utf-8"))
    definitions: Any = task_manager(plan, tmp_path, tmp_path).task_index
    assert definitions["ai2_arc"].tags == {"arc_easy", "arc_challenge"}
    assert definitions["arc_easy"].cfg["dataset_path"] == "json"
    assert definitions["arc_challenge"].cfg["dataset_path"] == "allenai/ai2_arc"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ARC[0], "answerKey": "D"}, "row 2: .*'D' is not in list"),
        (
            {**ARC[0], "choices": {"text": ["red"], "label": ["A", "B"]}},
            r"row 2: the answer 1 is not one of the choices",
        ),
    ],
)
def test_rows_without_a_right_answer_are_refused(tmp_path, row, message):
    task, local = loaded(tmp_path / "work", planned(tmp_path / "tasks", [ARC[1], row]))
    with pytest.raises(StageError, match=f"do not fit the task arc_easy: {message}"):
        check(task, local, {})


def test_rows_of_another_shape_are_refused(tmp_path):
    rows = [{"ask": row["question"], "right": 1} for row in ARC]
    tasks = planned(tmp_path / "tasks", rows)
    (tmp_path / "work").mkdir()
    manager = task_manager(
        Plan.model_validate_json((tasks / PLAN).read_text(encoding="utf-8")), tasks, tmp_path / "work"
    )
    settings = DownstreamTasks(
        harness="0", tasks=("arc_easy",), few_shot=None, template=None, parts={}, changes={"arc_easy": {}}
    )
    with pytest.raises(StageError, match=r"do not fit the task arc_easy: .*'question' is undefined.*`changes`"):
        obtain(manager, "arc_easy", settings)


def test_changes_make_a_task_read_rows_of_another_shape(tmp_path, tokenizer):
    rows = [{"ask": f"number {n}?", "offered": ["red", "blue"], "right": n % 2} for n in range(3)]
    changes = {"doc_to_text": "{{ask}}", "doc_to_choice": "offered", "doc_to_target": "right"}
    (blue,) = tokenizer.encode(" blue")
    tasks = planned(tmp_path / "tasks", rows, changes=changes)
    _, found = answered(tmp_path, tasks, constant_model(blue, 9.0, tokenizer), tokenizer)
    assert found["arc_easy"]["value"] == pytest.approx(1 / 3)


def test_examples_must_be_there_and_never_be_the_questions(tmp_path):
    task, local = loaded(tmp_path / "none", planned(tmp_path / "a", ARC, few_shot=2))
    with pytest.raises(StageError, match="arc_easy is asked with 2 examples, but there are 0 rows"):
        check(task, local, {})
    task, local = loaded(tmp_path / "few", planned(tmp_path / "b", ARC, examples=ARC[:1], few_shot=2))
    with pytest.raises(StageError, match="arc_easy is asked with 2 examples, but there are 1 rows"):
        check(task, local, {})
    task, local = loaded(tmp_path / "enough", planned(tmp_path / "c", ARC, examples=ARC[:2], few_shot=2))
    check(task, local, {})


def test_a_task_must_leave_room_for_its_answers(tmp_path):
    rows = [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}]
    tasks = planned(tmp_path / "tasks", rows, task="gsm8k", file="gsm8k/gsm8k.yaml", few_shot=0)
    task, local = loaded(tmp_path / "work", tasks)
    check(task, local, {"teacher": 257})
    with pytest.raises(StageError, match="gsm8k generates up to 256 tokens, but student sees only 256"):
        check(task, local, {"teacher": 257, "student": 256})


def test_code_of_a_model_is_not_run(tmp_path):
    task, local = loaded(tmp_path / "work", planned(tmp_path / "tasks", ARC, changes={"unsafe_code": True}))
    with pytest.raises(StageError, match="arc_easy runs code that the model writes"):
        check(task, local, {})


def test_rows_are_dealt_to_the_tasks_of_a_group():
    rows = [{"subject": "x", "n": 1}, {"subject": "y", "n": 2}, {"subject": "x", "n": 3}]
    dealt = deal("f", rows, "subject", {"task_x": "x", "task_y": "y"})
    assert {task: [row["n"] for row in of_task] for task, of_task in dealt.items()} == {"task_x": [1, 3], "task_y": [2]}
    assert deal("f", rows, None, {"only": "x"}) == {"only": rows}
    with pytest.raises(StageError, match=r"f: it stands for 2 tasks .*\(x, y …\); set `part`"):
        deal("f", rows, None, {"task_x": "x", "task_y": "y"})
    with pytest.raises(StageError, match="f: `part` is 'subjct', but rows have no such field; did you mean `subject`"):
        deal("f", rows, "subjct", {"task_x": "x"})
    with pytest.raises(StageError, match="f: no task has rows with subject = 'y'"):
        deal("f", rows, "subject", {"task_x": "x"})
    with pytest.raises(StageError, match="f: there is no row with subject = z; add some"):
        deal("f", rows, "subject", {"task_x": "x", "task_y": "y", "task_z": "z"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "f: .* has no rows"),
        ([{"a": 1}, {"a": 1, "b": 2}], "f: .*:2: its fields are not those of the first row; they differ in b"),
        ([{"a": 1}, [1]], "f: .*:2: not an object but list"),
    ],
)
def test_local_rows_have_the_same_fields(tmp_path, lines, message):
    with pytest.raises(StageError, match=message):
        read_rows("f", write_lines(tmp_path / "rows.jsonl", lines))


def test_scores_are_read_from_the_harness_by_metric_and_filter():
    result = {"alias": "x", "sample_len": 3, "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1}
    result |= {"bleu,none": 7.0, "bleu_stderr,none": "N/A"}
    assert scores(result) == {"exact_match,strict": (0.5, 0.1), "bleu": (7.0, None)}


def test_a_tag_has_a_row_for_each_of_its_tasks():
    of_task = {"acc,none": 0.5, "acc_stderr,none": 0.1}
    names = ("arc_easy", "arc_challenge")
    part = {
        "results": dict.fromkeys(names, of_task),
        "higher_is_better": {name: {"acc": True} for name in names},
        "n-shot": dict.fromkeys(names, 0),
        "n-samples": {name: {"original": 9, "effective": 4} for name in names},
        "versions": dict.fromkeys(names, 1.0),
        "cut": {"arc_easy": 1, "arc_challenge": 0},
    }
    assert list(table("ai2_arc", part)) == list(names)
    group = {**part, "results": {**part["results"], "arc": {"acc,none": 0.4, "acc_stderr,none": 0.2}}}
    row = table("arc", group)["arc"]
    assert (row["value"], row["stderr"], row["questions"], row["cut"], row["shots"]) == (0.4, 0.2, 8, 1, 0)
