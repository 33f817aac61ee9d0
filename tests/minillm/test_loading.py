import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from minillm.config import Lora, Runtime
from minillm.config.hosts import read_hosts
from minillm.config.loading import load_config, load_evaluation, named_models
from minillm.errors import ConfigError
from tests.minillm.direct import ROOT, write_lines


def load(folder: Path, raw: dict[str, Any], *overrides: str):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_config(path, overrides)


def refusal(folder: Path, raw: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(folder, raw, *overrides)
    return str(error.value)


def test_a_valid_file_loads_and_overrides_win(tmp_path, raw):
    policy = load(tmp_path, raw).methods["minillm"].policy
    assert policy is not None
    assert policy.teacher_mix == 0.2
    overrides = ("methods.minillm.policy.teacher_mix=0.5", "student.initial.learning_rate=5e-6", "data.split=null")
    config = load(tmp_path, raw, *overrides)
    assert config.methods["minillm"].policy == policy.model_copy(update={"teacher_mix": 0.5})
    assert config.trainings["student.initial"].learning_rate == 5e-6
    assert config.data.split is None


def test_a_method_that_starts_from_the_fine_tuned_student_needs_its_fine_tuning(tmp_path, raw):
    assert load(tmp_path, raw, "student.initial=null").student.initial is None
    raw["methods"]["minillm"]["start"] = "initial"
    assert "methods.minillm.start is initial, but student.initial is null" in refusal(
        tmp_path, raw, "student.initial=null"
    )


def test_a_student_takes_layers_of_a_teacher_that_has_learnt_something(tmp_path, raw):
    raw["student"]["model"] = {"layers_of": "teacher", "layers": [0, 1]}
    assert "student.model takes layers of the teacher, whose weights are random" in refusal(tmp_path, raw)
    raw["teacher"]["model"] = {"hub": "gpt2"}
    assert load(tmp_path, raw).student.model.layers == (0, 1)
    assert "layers [1, 0] are not in rising order" in refusal(tmp_path, raw, "student.model.layers=[1, 0]")


def test_interpolation_is_resolved(tmp_path, raw):
    raw["methods"]["kd"] = {**raw["methods"]["sft"], "training": "${methods.sft.training}"}
    config = load(tmp_path, raw, "methods.sft.training.learning_rate=0.25")
    assert config.methods["kd"].training.learning_rate == 0.25
    raw["name"] = "${no.such}"
    assert "no.such" in refusal(tmp_path, raw)


def test_every_problem_stands_in_one_message_by_its_field(tmp_path, raw):
    raw["data"]["max_tokns"] = 7
    raw["data"]["instructions"]["path"] = "doly.jsonl"
    raw["methods"]["minillm"]["policy"]["teacher_mix"] = 1.0
    raw["methods"]["sft"]["training"]["batch_size"] = "many"
    raw["evaluation"]["benchmarks"]["dolly"]["source"]["pth"] = "x"
    del raw["student"]["initial"]["learning_rate"]
    message = refusal(tmp_path, raw)
    assert "6 problems" in message
    assert "data.max_tokns: unknown key; did you mean `max_tokens`?" in message
    assert f"data.instructions: {tmp_path}/data/doly.jsonl does not exist; did you mean" in message
    assert "methods.minillm.policy.teacher_mix: Input should be less than 1, not 1.0 (α: share of" in message
    assert "methods.sft.training.batch_size: Input should be a valid integer" in message
    assert "not 'many' (Sequences per optimizer step over all processes.)" in message
    assert "evaluation.benchmarks.dolly.source.pth: unknown key; did you mean `path`?" in message
    assert "student.initial.learning_rate: required, but not given (Peak learning rate of AdamW.)" in message


def test_an_unknown_key_far_from_all_lists_those_of_its_level(tmp_path, raw):
    message = refusal(tmp_path, raw, "methods.minillm.policy.zzzz=1")
    assert "methods.minillm.policy.zzzz: unknown key; known: clip_importance, clip_range, collapse, credit" in message
    assert "unknown key; known: data, evaluation" in refusal(tmp_path, raw, "zzzz=1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods.minillm.policy.rollouts=12", "rollouts 12 must be a multiple of batch_size 8"),
        ("runtime.offload_optimizer=true", "offload_optimizer moves what ZeRO shards: set zero_stage to 1, 2 or 3"),
        ("runtime.teacher_offload=cpu", "teacher_offload: cpu moves what ZeRO shards: set teacher_zero_stage: 3"),
        ("runtime.teacher_zero_stage=2", "runtime.teacher_zero_stage: Input should be 0 or 3, not 2"),
        ("runtime.gather_student=false", "gather_student: false leaves weights sharded, which they are not; set zero"),
        ("data.turns=first", "data.turns: Input should be 'last' or 'all', not 'first'"),
        ("methods.minillm.training.epochs=2", "give exactly one of `epochs` and `steps`"),
        ("data.max_prompt_tokens=512", "max_prompt_tokens 512 leaves no room for a response"),
        ("methods.minillm.policy.teacher_mix=-0.1", "greater than or equal to 0, not -0.1"),
        ("methods.minillm.policy={teacher_mix: 0, clip_importance: true}", "teacher_mix: 0 does not use clip_importan"),
        ("methods.minillm.policy={teacher_mix: 0, weight_single_step: false}", "0 does not use weight_single_step; le"),
        ("methods.minillm.policy={plain_text_coefficient: 0, plain_text_kd: 0.5}", "0 does not use plain_text_kd; le"),
        (
            "methods.minillm.policy={credit: none, teacher_mix: 0, student_share: 0, replay: 9}",
            "0 does not use replay; le",
        ),
        ("data.plain_text=null", "methods.minillm.policy.plain_text_coefficient is 1.0, but there is no"),
        ("teacher.training=null", "teacher.training is null, but its weights are random"),
        ("student.model={layers_of: teacher, layers: 2}", "student.model: give exactly one of `path`, `hub`, `arch"),
        ("student.model.layers=2", "student.model: `layers_of: teacher` and `layers` go together"),
        ("tokenizer.from=/nowhere", "give at most one of `from` and `train_vocabulary`"),
        ("tokenizer.path=/nowhere", "tokenizer.path: unknown key; known: from, train_vocabulary"),
        (
            "tokenizer={train_vocabulary: null, from: student}",
            "the student has an `architecture` and so no tokenizer of its own; set tokenizer.train_vocabulary, or",
        ),
        (
            "methods.sft.teacher=stored",
            "Input should be 'live', 'top', 'sampled' or 'hidden', not 'stored' (The teache",
        ),
        ("methods.sft.teacher=top", "divergence cross_entropy does not use teacher; leave it out"),
        (
            "methods.minillm.teacher=hidden",
            "teacher: hidden is what the teacher said of one text before training, which text: rollouts "
            "does not train on; set teacher: live, or text: dataset or teacher",
        ),
        (
            "methods.sft={teacher: top, divergence: jensen_shannon}",
            "divergence jensen_shannon needs the teacher's whole distribution, and teacher: top has some of its "
            "entries; set teacher: hidden or live, or divergence: forward_kl",
        ),
        ("methods.sft={divergence: forward_kl, weighting: confidence}", "divergence_weight < 1, e.g. 0.5"),
        ("methods.minillm.weighting=confidence", "it is for text: dataset or teacher with divergence_weight < 1"),
        ("teacher.knowledge.top={k: 5, mass: 0.9}", "teacher.knowledge.top: `k` and `mass` each say what is kept; giv"),
        ("teacher.knowledge.top.k=0", "teacher.knowledge.top.k: Input should be greater than 0, not 0 (Number of ent"),
        ("teacher.knowledge.sampled.draws=300", "sampled.draws: Input should be less than or equal to 255, not 300"),
        ("methods.sft.skew=0.3", "divergence cross_entropy does not use skew; leave it out"),
        ("methods.sft.divergence_weight=0.5", "divergence cross_entropy does not use divergence_weight"),
        ("methods.minillm.beta=0.3", "divergence reverse_kl does not use beta"),
        ("evaluation.held_out.dolly.path=plain.txt", "held_out.dolly has the name of a benchmark"),
        ("evaluation.strip='<think>(.*'", "evaluation.strip: '<think>(.*' is no regular expression"),
        ("evaluation.strip='(<think>)?'", "evaluation.strip: '(<think>)?' matches the empty text, and so everywhere"),
        ("promotion.metric=rouge_l_characters", "is rouge_l_characters, by which dolly is not measured; set"),
        ("evaluation.benchmarks.dolly.metric=regex", "evaluation.benchmarks.dolly: metric regex needs `pattern`"),
        (
            "evaluation.calibration.a={source: {path: eval.jsonl}, choices: [x]}",
            "evaluation.calibration.a.choices: Tuple",
        ),
        (
            "evaluation.calibration.a={source: {path: eval.jsonl}, sets: 1}",
            "calibration.a.sets: unknown key; known: choices",
        ),
        ("data.split.hub=a/b", "data.split: give exactly one of `path` (local) and `hub` (hub name)"),
    ],
)
def test_contradictions_are_refused_with_value_and_remedy(tmp_path, raw, override, message):
    assert message in refusal(tmp_path, raw, override)


def test_drawing_options_are_refused_where_nothing_is_drawn(tmp_path, raw):
    message = refusal(tmp_path, raw, "evaluation.strategy=greedy", "evaluation.top_k=5", "evaluation.temperature=0.7")
    assert "strategy: greedy draws nothing and does not use temperature and top_k; leave it out" in message
    assert load(tmp_path, raw, "evaluation.strategy=greedy").evaluation.strategy == "greedy"


def test_exposure_bias_is_refused_where_it_cannot_be_measured(tmp_path, raw):
    message = refusal(tmp_path, raw, "evaluation.exposure_bias.benchmark=doly")
    assert "exposure_bias.benchmark is 'doly', but the benchmarks are dolly; name one of them" in message
    given = ("evaluation.exposure_bias={}", "evaluation.temperature=0.7", "evaluation.no_repeat_ngram=6")
    message = refusal(tmp_path, raw, *given)
    assert "plain samples at temperature 1, but responses are generated with temperature: 0.7 and no_repeat" in message
    assert "leave that out, or set exposure_bias: null" in message
    greedy = refusal(tmp_path, raw, "evaluation.exposure_bias={}", "evaluation.strategy=greedy")
    assert "generated with strategy: greedy" in greedy
    message = refusal(tmp_path, raw, "evaluation.exposure_bias.max_length=257")
    assert "max_length is 257, but only 256 response tokens fit after the longest prompt" in message
    exposure = load(tmp_path, raw, "evaluation.exposure_bias.max_length=256").evaluation.exposure_bias
    assert exposure is not None
    assert (exposure.benchmark, exposure.max_length, exposure.prompts) == (None, 256, None)


def test_local_rows_belong_to_a_task_that_is_asked_for(tmp_path, raw):
    local = "{arc_easy: {source: {path: eval.jsonl}}}"
    message = refusal(tmp_path, raw, f"evaluation.downstream={{tasks: [hellaswag], local: {local}}}")
    assert "evaluation.downstream: `local` has rows for arc_easy, not among `tasks`: hellaswag" in message
    assert "evaluation.downstream.fewshot: unknown key; did you mean `few_shot`" in refusal(
        tmp_path, raw, "evaluation.downstream={tasks: [mmlu], fewshot: 5}"
    )
    assert "evaluation.downstream runs each model whole in one process, and runtime.teacher_zero_stage: 3" in refusal(
        tmp_path, raw, "evaluation.downstream={tasks: [mmlu]}", "runtime.teacher_zero_stage=3"
    )


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("data.split.path=no.jsonl", "data.split"),
        ("data.plain_text.path=no.txt", "data.plain_text"),
        ("evaluation.benchmarks.dolly.source.path=no.jsonl", "evaluation.benchmarks.dolly.source"),
        ("evaluation.held_out.text.path=no.txt", "evaluation.held_out.text"),
        ("evaluation.calibration.sst2.source.path=no.jsonl", "evaluation.calibration.sst2.source"),
        ("data.directory=/no/such/folder", "data.instructions"),
        (
            "evaluation.downstream={tasks: [mmlu], local: {mmlu: {source: {path: no.jsonl}}}}",
            "evaluation.downstream.local.mmlu.source",
        ),
        (
            "evaluation.downstream={tasks: [a], local: {a: {source: {path: eval.jsonl}, examples: {path: no.jsonl}}}}",
            "evaluation.downstream.local.a.examples",
        ),
    ],
)
def test_missing_data_are_refused_by_field_and_path(tmp_path, raw, override, field):
    path = "/no/such/folder/dolly.jsonl" if "directory" in override else str(tmp_path / "data" / "no")
    assert f"{field}: {path}" in refusal(tmp_path, raw, override)


JUDGE = {"base_url": "http://localhost:1/v1", "model": "gpt", "benchmarks": ["dolly"], "max_questions": 1000}


def test_a_judge_is_loaded_where_its_key_is(tmp_path, raw, monkeypatch):
    raw["evaluation"]["judge"] = JUDGE
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc")
    judge = load(tmp_path, raw).evaluation.judge
    assert judge is not None
    assert (judge.samples, judge.seeds, judge.prompts, judge.temperature) == (1, None, None, 0.0)
    monkeypatch.delenv("OPENAI_API_KEY")
    message = refusal(tmp_path, raw, "evaluation.judge.api_key_variable=MY_KEY")
    assert "evaluation.judge.api_key_variable: the environment has no MY_KEY; export it" in message
    assert load(tmp_path, raw, "evaluation.judge=null").evaluation.judge is None
    monkeypatch.setenv("MY_KEY", "sk-hunter2\n")
    message = refusal(tmp_path, raw, "evaluation.judge.api_key_variable=MY_KEY")
    assert "MY_KEY holds blanks, line ends" in message
    assert "hunter2" not in message


def test_the_judge_of_the_documentation_is_valid(tmp_path, raw, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc")
    snippet = (
        (ROOT / "docs" / "evaluation.md")
        .read_text(encoding="utf-8")
        .split("## A judge")[1]
        .split("```")[1]
        .removeprefix("yaml")
    )
    raw["evaluation"]["judge"] = yaml.safe_load(snippet)["evaluation"]["judge"]
    raw["evaluation"]["benchmarks"] = dict.fromkeys(
        raw["evaluation"]["judge"]["benchmarks"], raw["evaluation"]["benchmarks"]["dolly"]
    )
    assert load(tmp_path, raw).evaluation.judge is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmarks=[doly]", "judge.benchmarks: 'doly' is no benchmark; did you mean `dolly`?"),
        ("seeds=[10,7]", "judge.seeds [7] are not among evaluation.seeds [10, 20, 30, 40, 50]"),
        ("samples=3", "samples: 3 at temperature 0 is one answer paid for 3 times"),
        ("max_cost=5", "`max_cost` needs `prices`"),
        ("prompts=400", "max_questions is 1000, but there are 2400 questions to ask (3 models × 1 benchmarks × 400"),
        ("max_questions=null", "evaluation.judge.max_questions: Input should be a valid integer"),
    ],
)
def test_a_judge_that_contradicts_the_rest_is_refused(tmp_path, raw, monkeypatch, override, message):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc")
    raw["evaluation"]["judge"] = JUDGE
    assert message in refusal(tmp_path, raw, f"evaluation.judge.{override}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("api_key_variable=sk-hunter2", "is the name of an environment variable"),
        ("base_url=https://me:hunter2@host/v1", "without user, key or query"),
        ("base_url=https://host/v1?key=hunter2", "without user, key or query"),
        ("base_url=hunter2/v1", "must be http:// or https://"),
        ("api_key=hunter2", "evaluation.judge.api_key: unknown key; did you mean `api_key_variable`?"),
    ],
)
def test_a_secret_in_the_configuration_is_refused_and_not_repeated(tmp_path, raw, override, message):
    raw["evaluation"]["judge"] = JUDGE
    refused = refusal(tmp_path, raw, f"evaluation.judge.{override}")
    assert message in refused
    assert "hunter2" not in refused


TOKEN = "hf_" + "kL5" * 12


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("export={hub: talker, method: sft}", "export: `hub` is 'talker'; give OWNER/NAME, with the user or"),
        ("export={hub: me/my talker, method: sft}", "export: `hub` is 'me/my talker': Repo id must use alphanumeric"),
        ("export={hub: me/talker}", "there are 2 methods; set export.method to one of minillm, sft"),
        ("export={hub: me/talker, method: sfd}", "export.method is 'sfd', which is no student; did you mean `sft`?"),
        (f"export={{hub: me/talker, method: sft, token: {TOKEN}}}", "export.token: unknown key"),
        (f"export={{hub: me/talker, method: sft, token: {TOKEN}}}", "export.token: holds a token of the hub; take it"),
        (f"data.template.variables.key={TOKEN}", "data.template.variables.key: holds a token of the hub"),
        ("name=plain-secret-word", "name: holds a token of the hub; take it out and export it as HF_TOKEN"),
    ],
)
def test_an_upload_that_cannot_work_is_refused_and_no_token_is_repeated(tmp_path, raw, monkeypatch, override, message):
    monkeypatch.setenv("HF_TOKEN", "plain-secret-word")
    told = refusal(tmp_path, raw, override)
    assert message in told
    assert TOKEN not in told
    assert "plain-secret-word" not in told


@pytest.mark.parametrize(("token", "message"), [("", "is not set"), ("two words", "is no token")])
def test_an_upload_without_a_token_is_refused_before_the_night(tmp_path, raw, monkeypatch, token, message):
    monkeypatch.setenv("HF_TOKEN", token)
    told = refusal(tmp_path, raw, "export={hub: me/talker, method: sft}")
    assert f"export.hub: HF_TOKEN in the environment {message}; export one that may write to the hub" in told
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert load(tmp_path, raw, "export={hub: me/talker, method: sft}").uploaded == "sft"


def test_missing_models_are_refused(tmp_path, raw):
    raw["student"]["model"] = {"path": str(tmp_path / "student")}
    assert f"student.model: {tmp_path / 'student'} does not exist" in refusal(tmp_path, raw)


def test_a_tokenizer_is_a_models_or_that_of_a_directory(tmp_path, raw):
    raw["tokenizer"] = {"from": str(tmp_path / "tok")}
    told = refusal(tmp_path, raw)
    assert f"tokenizer.from: {tmp_path / 'tok'} does not exist" in told
    assert "or give `teacher` or `student`" in told
    (tmp_path / "tok").mkdir()
    config = load(tmp_path, raw)
    assert (config.tokenizer.model, config.tokenizer.directory) == (None, tmp_path / "tok")
    assert config.model_dump(mode="json")["tokenizer"]["from"] == str(tmp_path / "tok"), "named as it is written"


def test_a_file_that_is_no_configuration_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"no configuration file configs/gpt2\.yaml; there are: .*configs/gpt2-base"):
        load_config("configs/gpt2.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"(?s)bad\.yaml cannot be read as a configuration: .*line 2"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("a: 1\na: 2", encoding="utf-8")
    with pytest.raises(ConfigError, match="duplicate key a"):
        load_config(tmp_path / "twice.yaml")
    (tmp_path / "list.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="list"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="methods: required"):
        load_config(tmp_path / "empty.yaml")
    with pytest.raises(ConfigError, match=r"'seed' is not an override; write key\.sub=value"):
        load_config(tmp_path / "empty.yaml", ["seed"])
    with pytest.raises(ConfigError, match=r"override 'seed=\[1': what follows the = is not YAML"):
        load_config(tmp_path / "empty.yaml", ["seed=[1"])


def inherit(folder: Path, file: str, base: str | None, **changes: Any) -> Path:
    """Write a configuration that has only what differs from its base."""
    path = folder / f"{file}.yaml"
    given = {} if base is None else {"base": str(folder / f"{base}.yaml")}
    path.write_text(yaml.safe_dump(given | changes), encoding="utf-8")
    return path


def test_a_configuration_says_only_what_differs_from_its_bases(tmp_path, raw):
    raw["methods"]["kd"] = {**raw["methods"]["sft"], "training": "${methods.sft.training}"}
    inherit(tmp_path, "first", None, **raw)
    inherit(tmp_path, "second", "first", methods={"sft": {"training": {"epochs": 3}}}, data={"max_tokens": 600})
    path = inherit(tmp_path, "third", "second", name="third", seed=5, methods={"sft": {"training": {"batch_size": 16}}})
    config = load_config(path, ["seed=6"])
    assert (config.name, config.seed, config.data.max_tokens) == ("third", 6, 600)
    for method in ("sft", "kd"):  # an interpolation in the base uses what is merged over it
        training = config.methods[method].training
        assert (training.epochs, training.batch_size, training.learning_rate) == (3, 16, 1e-3)
    assert config.teacher == load_config(tmp_path / "first.yaml").teacher


def test_a_null_leaves_out_an_entry_of_the_base(tmp_path, raw):
    raw["methods"]["kd"] = raw["methods"]["sft"]
    inherit(tmp_path, "first", None, **raw)
    config = load_config(inherit(tmp_path, "second", "first", methods={"kd": None}))
    assert set(config.methods) == {"sft", "minillm"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": {"sftt": None}},
            r"methods\.sftt is null, .* but is not there; did you mean `sft`",
        ),
        (
            {"evaluation": {"benchmarks": {"dollyy": None}}},
            r"evaluation\.benchmarks\.dollyy is null, .* did you mean `dolly`",
        ),
        ({"data": {"unlabelled": {"coin": None}}}, r"data\.unlabelled\.coin is null, .* not there"),
    ],
)
def test_a_null_for_an_entry_that_the_base_lacks_is_refused(tmp_path, raw, changes, message):
    inherit(tmp_path, "first", None, **raw)
    with pytest.raises(ConfigError, match=r"second\.yaml, merged over its base \S+first\.yaml: " + message):
        load_config(inherit(tmp_path, "second", "first", **changes))


@pytest.mark.parametrize("changes", [{"methods": ["sft"]}, {"methods": {"sft": [1]}}, {"data": [1]}])
def test_a_section_of_another_form_than_the_bases_is_refused(tmp_path, raw, changes):
    inherit(tmp_path, "first", None, **raw)
    with pytest.raises(ConfigError, match=r"second\.yaml cannot be merged over its base \S+first\.yaml: "):
        load_config(inherit(tmp_path, "second", "first", **changes))


def test_bases_that_lead_nowhere_are_refused(tmp_path):
    inherit(tmp_path, "a", "b")
    inherit(tmp_path, "b", "c")
    inherit(tmp_path, "c", "a")
    with pytest.raises(ConfigError, match=r"base: \S+a\.yaml → \S+b\.yaml → \S+c\.yaml → \S+a\.yaml come back"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"no configuration file \S+missing\.yaml; there are: "):
        load_config(inherit(tmp_path, "d", "missing"))
    (tmp_path / "e.yaml").write_text("base: [a.yaml, b.yaml]", encoding="utf-8")
    with pytest.raises(ConfigError, match="base is the path of one configuration, not"):
        load_config(tmp_path / "e.yaml")


def evaluation(folder: Path, *models: str, overrides: Sequence[str] = (), **sections: Any):
    """Load the configuration of an evaluation of models, with further sections in its file."""
    write_lines(folder / "eval.jsonl", [])
    raw = {
        "name": "test",
        "data": {"directory": str(folder)},
        "evaluation": {"benchmarks": {"v1.5": {"source": {"path": "eval.jsonl"}}}},
    }
    path = folder / "evaluation.yaml"
    path.write_text(yaml.safe_dump(raw | sections), encoding="utf-8")
    return load_evaluation(path, models, overrides)


def test_what_exists_or_can_be_no_hub_name_is_a_path_and_the_last_part_names_the_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert named_models(["gpt2", "Qwen/Qwen2.5-0.5B", "a=models/mine", "models/mine", "./x", "b=/data/lr=1/y"]) == {
        "gpt2": {"hub": "gpt2"},
        "Qwen2.5-0.5B": {"hub": "Qwen/Qwen2.5-0.5B"},
        "a": {"path": "models/mine"},
        "mine": {"path": "models/mine"},
        "x": {"path": "./x"},
        "b": {"path": "/data/lr=1/y"},
    }
    with pytest.raises(ConfigError, match=r"two models are named gpt2; write NAME=MODEL, e\.g\. gpt2-2=other/gpt2"):
        named_models(["gpt2", "other/gpt2"])


def test_models_of_the_command_line_stand_for_those_of_the_file_and_overrides_win(tmp_path):
    models = {"old": {"hub": "gpt2"}}
    assert list(evaluation(tmp_path, models=models).models) == ["old"]
    config = evaluation(tmp_path, "b", "a=x/y", models=models, overrides=["models.b.revision=v2"])
    assert list(config.models) == ["b", "a"], "the first is the yardstick"
    assert (config.models["b"].revision, config.models["a"].hub) == ("v2", "x/y")


@pytest.mark.parametrize(
    ("models", "sections", "message"),
    [
        ([], {}, "models: required, but not given (Rows of the result table; on the command line, MODEL or NAME=MODEL"),
        ([], {"models": {}}, "models: Dictionary should have at least 1 item"),
        (["./Qwen2.5"], {}, "models.Qwen2.5: "),
        (["my (model)"], {}, "models: 'my (model)' cannot be a name, since names become"),
        ([], {"models": {"a": {"hub": "x", "pth": "y"}}}, "models.a.pth: unknown key; did you mean `path`?"),
        ([], {"models": {"a": {"architecture": {"model_type": "gpt2"}}}}, "models.a: an `architecture` has random"),
        (["a"], {"runtime": {"zero_stage": 1}}, "nothing is trained here, so runtime.zero_stage would do nothing"),
        (["a"], {"runtime": {"teacher_zero_stage": 3}}, "so runtime.teacher_zero_stage would do nothing"),
        (["a"], {"teacher": {}}, "teacher: unknown key"),
    ],
)
def test_an_evaluation_that_cannot_run_is_refused(tmp_path, models, sections, message):
    (tmp_path / "my (model)").mkdir()
    with pytest.raises(ConfigError) as error:
        evaluation(tmp_path, *[m.replace("my model", str(tmp_path / "my model")) for m in models], **sections)
    assert message in str(error.value)


def test_a_benchmark_with_a_dot_in_its_name_is_looked_for_too(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.benchmarks\.v1\.5\.source: .*eval\.jsonl does not exist"):
        evaluation(tmp_path, "a", overrides=["data.directory=/nowhere"])


def test_what_only_an_extra_installs_is_missed_before_anything_starts(tmp_path, raw):
    """The interpreter sees every installed package but lm_eval."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    installed = tmp_path / "site-packages"
    installed.mkdir()
    for package in Path(pydantic.__file__).parents[1].iterdir():
        if not package.name.startswith("lm_eval"):
            (installed / package.name).symlink_to(package)
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(installed)!r}]
from minillm.errors import ConfigError
from minillm.config.loading import load_config
load_config({str(path)!r})
try:
    load_config({str(path)!r}, ["evaluation.downstream.tasks=[mmlu]"])
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "evaluation.downstream: needs lm_eval, not installed here; run `pip install .[downstream]`" in done.stdout


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "runtime.hostfile: there is no file"),
        (
            "worker-1 slots=2\nworker-2 slots=1\n",
            "runtime.processes is 4, but runtime.hostfile .* has 3 slots; set it to",
        ),
        ("worker-1 slots=2\nworker-1 slots=1\n", "multiple entries for worker-1.*; its lines are HOST slots=PROCESSES"),
        ("worker-1: 3\n", "bad entry: worker-1: 3.*; its lines are HOST slots=PROCESSES"),
        ("a slots=2\n\n-oProxyCommand=id slots=1\n", r"line 3: '-oProxyCommand=id' is no host; .*\.ssh/config"),
        (
            "root@worker-1 slots=3\n",
            "line 1: 'root@worker-1' is no host; names are letters, digits and . _ - : and begin",
        ),
        ("worker- slots=3\n", "line 1: 'worker-' is no host; .* and begin and end with a letter or digit"),
        ("# two\n  a;id slots=3\n", "line 2: 'a;id' is no host"),
    ],
)
def test_a_hostfile_that_does_not_fit_is_refused(tmp_path, raw, lines, message):
    hostfile = tmp_path / "hosts"
    if lines is not None:
        hostfile.write_text(lines, encoding="utf-8")
    assert re.search(message, refusal(tmp_path, raw, f"runtime.hostfile={hostfile}", "runtime.processes=4"))


def test_hosts_are_names_or_addresses(tmp_path, raw):
    hostfile = tmp_path / "hosts"
    hostfile.write_text(
        "  # all\nworker_1.example.org slots=1\n10.0.0.2 slots=1\nfe80::1 slots=1  # here\n", encoding="utf-8"
    )
    hosts = read_hosts(Runtime(processes=3, zero_stage=1, hostfile=str(hostfile)))
    assert hosts == {"worker_1.example.org": 1, "10.0.0.2": 1, "fe80::1": 1}


def test_loading_imports_nothing_heavy():
    heavy = ["torch", "transformers", "datasets", "huggingface_hub", "pandas", "numpy"]
    modules = "minillm.config.loading, minillm.data.sources, minillm.stages"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SECTIONS = {
    "methods": "{text: dataset, divergence: cross_entropy, training: ${methods.sft.training}}",
    "evaluation.benchmarks": "{source: {path: eval.jsonl}}",
    "evaluation.calibration": "{source: {path: eval.jsonl}}",
    "evaluation.held_out": "{path: plain.txt}",
}


def with_entry(raw: dict[str, Any], section: str, name: str) -> dict[str, Any]:
    """Return the configuration with one more entry in a section."""
    *above, last = section.split(".")
    parent = raw
    for part in above:
        parent = parent[part]
    parent.setdefault(last, {})[name] = yaml.safe_load(SECTIONS[section].replace("${methods.sft.training}", "null"))
    if section == "methods":
        raw["methods"][name]["training"] = raw["methods"]["sft"]["training"]
    return raw


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x", "'../x' cannot be a name"),
        ("mmlu/law", "'mmlu/law' cannot be a name"),
        ("$x$", "cannot be a name"),
        ("sft+lora (8)", "cannot be a name, since names become parts of files, metrics and labels; use letters"),
        ("recall@5", "cannot be a name"),
        ("a|b", "cannot be a name"),
        ("-x", "cannot be a name"),
        (".hidden", "cannot be a name"),
        ("two  blanks", "cannot be a name"),
        ("line\n", "cannot be a name"),
        ("", "cannot be a name"),
        ("é" * 51, "at most 100 bytes"),
        ("metrics", "'metrics' is reserved: it is the file of a stage's curves; choose another name"),
        ("Metrics.jsonl", "is reserved"),
        ("manifest.json", "is reserved"),
        ("initial", "'initial' is reserved: it is the fine-tuned student"),
        ("mean", "'mean' is reserved: it is the column over all benchmarks"),
        ("dolly_spread", "ends in _spread, which is reserved for the spread over seeds"),
    ],
)
def test_names_that_would_break_something_later_are_refused(tmp_path, raw, section, name, message):
    found = refusal(tmp_path, with_entry(raw, section, name))
    assert f"{section}: " in found
    assert message in found


@pytest.mark.parametrize("name", ["kd", "KD 0.5", "v1.5", "常识", "gpt-4_x", "tokenizer", "instructions"])
@pytest.mark.parametrize("section", SECTIONS)
def test_other_names_are_taken(tmp_path, raw, section, name):
    load(tmp_path, with_entry(raw, section, name))


@pytest.mark.parametrize(
    ("second", "message"),
    [("DOLLY", "'DOLLY' and 'dolly' differ only in the form"), ("dolly.source", "reads like a setting of 'dolly'")],
)
def test_no_entry_can_take_the_name_of_another(tmp_path, raw, second, message):
    assert message in refusal(tmp_path, with_entry(raw, "evaluation.benchmarks", second))


def test_versions_of_one_thing_stand_beside_each_other(tmp_path, raw):
    for section, names in {"methods": ("mix-0", "mix-0.2"), "evaluation.held_out": ("v1", "v1.5")}.items():
        for name in names:
            raw = with_entry(raw, section, name)
    config = load(tmp_path, raw)
    assert {"mix-0", "mix-0.2"} <= config.methods.keys()
    assert set(config.evaluation.held_out) >= {"v1", "v1.5"}


def test_the_adapters_of_a_model_are_those_of_its_trainings(tmp_path, raw):
    raw["teacher"]["training"]["lora"] = {"modules": ["c_attn"]}
    raw["student"]["initial"]["lora"] = raw["methods"]["sft"]["training"]["lora"] = {"rank": 2}
    config = load(tmp_path, raw)
    expected = {"teacher.model": (Lora(modules=("c_attn",)),), "student.model": (Lora(rank=2),)}
    assert config.adapters == expected


def test_the_rule_for_names_is_that_of_rows_and_experiments_too(tmp_path, raw):
    assert "name: 'a/b' cannot be a name" in refusal(tmp_path, raw, "name=a/b")
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump({"name": "e", "data": {}, "evaluation": raw["evaluation"]}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"models: 'my model \(2\)' cannot be a name"):
        load_evaluation(path, [str(tmp_path / "my model (2)")], [f"data.directory={tmp_path}/data"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed: Input should be greater than or equal to 0, not -1"),
        ("seed=4294967296", "seed: Input should be less than 4294967296"),
        ("evaluation.seeds=[10,-1]", "evaluation.seeds.1: Input should be greater than or equal to 0"),
        ("evaluation.seeds=[10,20,10]", "evaluation.seeds: [10, 20, 10] has 10 twice"),
        ("evaluation.seeds=[]", "evaluation.seeds: "),
        ("teacher.training.betas=[0.9,1.0]", "teacher.training.betas.1: Input should be less than 1, not 1.0"),
        ("teacher.training.betas=[-0.1,0.9]", "teacher.training.betas.0: "),
        ("evaluation.temperature=1e-300", "evaluation.temperature: Input should be greater than or equal to 0.01"),
        ("methods.minillm.policy.temperature=1e-300", "policy.temperature: Input should be greater than"),
        (
            "runtime.processes=3",
            "teacher.training.batch_size (8) and student.initial.batch_size (8) and "
            "methods.minillm.training.batch_size (8) and methods.sft.training.batch_size (8) cannot be divided "
            "among the 3 processes of runtime.processes; choose a multiple",
        ),
        ("methods.minillm.policy.plain_text_batch_size=3", None),
    ],
)
def test_numbers_that_could_only_fail_later_are_refused(tmp_path, raw, override, message):
    if message is None:
        message = "methods.minillm.policy.plain_text_batch_size (3) cannot be divided among the 2 processes of"
        assert message in refusal(tmp_path, raw, override, "runtime.processes=2")
        return
    assert message in refusal(tmp_path, raw, override)
