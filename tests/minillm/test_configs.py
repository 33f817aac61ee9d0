import copy
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from minillm.config import Config, EvaluationConfig, Pretrain, Study, System2, Tracked, Training
from minillm.config.loading import load_config, load_evaluation, load_pretrain, load_system2
from minillm.config.merging import nulls
from minillm.config.named import part_of
from tests.minillm.direct import ROOT, real_data

STUDIES = ("ablation", "alpha-sweep", "methods-study", "methods-dolly-study", "teacher-sizes", "without-teacher-study")
"""Studies, which test_studies covers."""
RECIPES = ("qwen3-0.6b", "llama3.2-1b", "smollm2-360m")
"""Chat models on policy alone, which tests/flows/test_recipes.py runs in small."""
SYSTEM2 = sorted((ROOT / "configs").glob("system2*.yaml"))
PRETRAIN = sorted((ROOT / "configs").glob("pretrain*.yaml"))
CONFIGS = [
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if path.stem not in STUDIES and path not in (*SYSTEM2, *PRETRAIN)
]
ALL_METHODS = ["sft", "kd", "seqkd", "minillm", "slim", "gkd", "distillm", "on_policy", "dpkd"]
PUBLISHED = {
    # student: learning rate and epochs of SFT, KD and SeqKD; the teacher and its rate; MiniLLM's schedule
    "gpt2-base": ("gpt2", 5e-4, 20, "gpt2-xl", 5e-5, "constant"),
    "gpt2-medium": ("gpt2-medium", 1e-4, 20, "gpt2-xl", 5e-5, "constant"),
    "gpt2-large": ("gpt2-large", 1e-4, 10, "gpt2-xl", 5e-5, "constant"),
    "opt-1.3b": ("facebook/opt-1.3b", 5e-5, 10, "facebook/opt-13b", 1e-5, "constant"),
    "llama-7b": ("huggyllama/llama-7b", 1e-5, 10, "huggyllama/llama-13b", 1e-5, "cosine"),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B", 1e-5, 10, "Qwen/Qwen2.5-1.5B", 1e-5, "cosine"),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_validates(path, monkeypatch):
    if path.stem in ("dolly-small", "methods-dolly", "evaluation", "smollm2", "smollm2-smoke"):
        real_data()
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TEACHER_KEY", "none")
    recipe = path.stem in RECIPES
    if path.stem.startswith("evaluation"):
        config = load_evaluation(path, ["gpt2"])
    else:
        config = load_config(path)
        methods = {
            "without-teacher": ["kd", "kd_hidden", "kd_top", "kd_sampled", "slim"],
            "methods": ALL_METHODS,
            "methods-dolly": ALL_METHODS,
            "served-teacher": ["seqkd", "slim"],
        }
        usual = ["minillm"] if recipe else ["sft", "kd", "seqkd", "minillm"]
        assert list(config.methods) == methods.get(path.stem, usual)
    assert config.name == path.stem
    if path.stem.startswith("smollm2") and not recipe:  # cut to fit a night, and minutes, on two cores
        assert {"dolly", "self_inst", "vicuna"} <= set(config.evaluation.benchmarks)
    else:
        assert list(config.evaluation.benchmarks) == ["dolly", "self_inst", "vicuna", "sni", "unni"]
        assert config.evaluation.seeds == (10, 20, 30, 40, 50)


@pytest.mark.parametrize("path", SYSTEM2, ids=lambda path: path.stem)
def test_every_configuration_of_a_system2_distillation_validates(path, monkeypatch):
    if path.stem != "system2":
        real_data()
    monkeypatch.chdir(ROOT)
    config = load_system2(path)
    assert config.name == path.stem
    assert config.data.unlabelled.keys() == config.data.test.keys()


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
def test_every_configuration_of_a_pre_training_validates(path, monkeypatch):
    if path.stem != "pretrain":
        real_data()
    monkeypatch.chdir(ROOT)
    config = load_pretrain(path)
    assert config.name == path.stem
    assert list(config.methods) == ["sft", "kd", "slim"]


def kind_of(name: str) -> type[Tracked]:
    kinds = {"evaluation": EvaluationConfig, "system2": System2, "pretrain": Pretrain}
    return Study if name in STUDIES else next((kind for start, kind in kinds.items() if name.startswith(start)), Config)


def over(base: Any, changes: Any) -> Any:
    """Merge changes over a base."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return base | {key: over(base.get(key), value) for key, value in changes.items()}


def constructed(node: yaml.Node) -> dict[str, Any]:
    return yaml.SafeLoader("").construct_document(apart(node))


def apart(node: yaml.Node) -> yaml.Node:
    """Copy a node, which construction changes where it has `<<`."""
    if isinstance(node, yaml.MappingNode):
        return yaml.MappingNode(node.tag, [(key, apart(value)) for key, value in node.value])
    return node


@functools.cache
def file_of(base: str) -> dict[str, Any]:
    return merged(yaml.safe_load((ROOT / base).read_text(encoding="utf-8")))


def merged(raw: dict[str, Any]) -> dict[str, Any]:
    return over(file_of(raw["base"]), {key: raw[key] for key in raw if key != "base"}) if "base" in raw else raw


def validated(kind: type[Tracked], raw: dict[str, Any]) -> Mapping[str, Any] | None:
    """Return the whole configuration; None if it is none."""
    raw = copy.deepcopy(raw if kind is Study else merged(raw))
    if kind is EvaluationConfig:
        raw["models"] = {"gpt2": {"hub": "gpt2"}}
    for keys, name in list(nulls(raw)):
        del part_of(raw, *keys)[name]
    try:
        return kind.model_validate(raw).model_dump()
    except ValidationError:
        return None


def without_each(node: yaml.Node, field: str = "") -> Iterator[str]:
    """Take the keys out of a YAML document and put them back, one by one; yield their names while they are out."""
    if isinstance(node, yaml.MappingNode):
        for number, (key, value) in enumerate(list(node.value)):
            name = f"{field}.{key.value}".removeprefix(".")
            if isinstance(value, yaml.MappingNode) and value.value:
                yield from without_each(value, name)
            elif key.value != "<<":
                del node.value[number]
                yield name
                node.value.insert(number, (key, value))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_configuration_repeats_a_default_or_its_base(path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    kind, node = kind_of(path.stem), yaml.compose(path.read_text(encoding="utf-8"))
    assert node is not None
    whole = validated(kind, constructed(node))
    assert whole is not None
    assert [field for field in without_each(node) if validated(kind, constructed(node)) == whole] == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers(name):
    student, rate, epochs, teacher, teacher_rate, schedule = PUBLISHED[name]
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert (config.student.model.hub, config.teacher.model.hub) == (student, teacher)
    assert (config.data.max_prompt_tokens, config.data.max_tokens, config.data.validation_size) == (256, 512, 1000)

    minillm = config.methods["minillm"]
    assert (minillm.text, minillm.divergence, minillm.start) == ("rollouts", "reverse_kl", "initial")
    assert minillm.policy is not None
    assert (
        minillm.policy.teacher_mix,
        minillm.policy.clip_range,
        minillm.policy.temperature,
    ) == (0.2, 0.2, 1.0)
    assert (minillm.policy.rollouts, minillm.policy.inner_epochs) == (256, 4)
    assert minillm.policy.plain_text_coefficient == 1.0
    t = minillm.training
    assert (t.learning_rate, t.schedule, t.warmup_steps, t.steps, t.batch_size) == (5e-6, schedule, 100, 5000, 64)
    assert (t.betas, t.weight_decay, t.gradient_clip, t.select_by) == ((0.9, 0.95), 1e-6, 1.0, "rouge_l")

    assert config.teacher.training is not None
    fine_tuned(config.teacher.training, teacher_rate, 10, "rouge_l")
    assert config.student.initial is not None
    fine_tuned(config.student.initial, rate, 3, "validation_loss")
    for method in ("sft", "kd", "seqkd"):
        assert config.methods[method].start == "pretrained"
        fine_tuned(config.methods[method].training, rate, epochs, "rouge_l")
    kd, seqkd = config.methods["kd"], config.methods["seqkd"]
    assert (kd.text, kd.divergence, kd.divergence_weight) == ("dataset", "forward_kl", 0.5)
    assert (seqkd.text, seqkd.divergence) == ("teacher", "cross_entropy")


def fine_tuned(t: Training, rate: float, epochs: int, select_by: str) -> None:
    assert (t.learning_rate, t.schedule, t.warmup_steps, t.epochs, t.batch_size) == (rate, "cosine", 0, epochs, 32)
    assert (t.betas, t.weight_decay, t.gradient_clip, t.select_by) == ((0.9, 0.95), 1e-2, 1.0, select_by)


@pytest.mark.parametrize(
    ("evaluation", "distillation"), [("evaluation-embedded", "quickstart"), ("evaluation", "dolly-small")]
)
def test_an_evaluation_asks_the_same_questions_as_the_distillation_it_goes_with(evaluation, distillation, monkeypatch):
    if evaluation == "evaluation":
        real_data()
    monkeypatch.chdir(ROOT)
    alone = load_evaluation(ROOT / "configs" / f"{evaluation}.yaml", ["gpt2"])
    whole = load_config(ROOT / "configs" / f"{distillation}.yaml")
    assert alone.evaluation.benchmarks == whole.evaluation.benchmarks
    assert alone.evaluation.seeds == whole.evaluation.seeds
    assert (alone.data.directory, alone.data.template) == (whole.data.directory, whole.data.template)


def test_the_real_files_have_the_checksums_that_the_data_page_gives():
    table = re.findall(
        r"^\| `([\w./-]+)` \|.*`([0-9a-f]{64})` \|$", (ROOT / "data" / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert len(table) == 17
    folder = real_data()
    for name, digest in table:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
