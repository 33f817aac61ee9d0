"""What a configuration may ask of a teacher behind an endpoint."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from minillm.patterns import matches
from tests.conftest import ROOT
from tests.judge_server import KEY
from tests.minillm.test_loading import load, refusal

ON_POLICY = ("methods.on_policy={training: {epochs: null, steps: 2}}", "teacher.model.endpoint.max_requests=16")
ENDPOINT = {"base_url": "https://example.org/v1", "model": "large", "max_requests": 10}


@pytest.fixture
def served(raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a configuration with a served teacher and a ready-made student."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "student").mkdir()
    raw["teacher"] = {"model": {"endpoint": ENDPOINT}, "training": None, "knowledge": {"top": {"k": 5}}}
    raw["student"] |= {"model": {"path": str(tmp_path / "student")}}
    raw["training"] = raw["methods"]["sft"]["training"]
    raw["methods"] = {"seqkd": {}, "slim": {}}
    del raw["tokenizer"]
    return raw


def test_the_student_brings_the_tokenizer_and_the_teacher_has_no_weights_here(served, tmp_path):
    config = load(tmp_path, served)
    assert config.tokenizer.model == "student"
    assert list(config.served) == ["teacher"]
    on_policy = load(tmp_path, served, *ON_POLICY).methods["on_policy"]
    assert on_policy.runs_teacher, "it asks for log p of the student's own tokens"
    endpoint = config.teacher.model.endpoint
    assert endpoint is not None
    assert (endpoint.temperature, endpoint.attempts, endpoint.parallel) == (1.0, 3, 8)
    assert load(tmp_path, served, "methods.slim=null", "tokenizer.train_vocabulary=300").tokenizer.model is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.training={learning_rate: 1, batch_size: 8, steps: 1, evaluate_every: 1}", "teacher.training fine-"),
        ("student.model={layers_of: teacher, layers: 2, path: null}", "student.model.layers_of takes weights"),
        ("tokenizer.from=teacher", "tokenizer.from is teacher, whose files an endpoint does not give; set it to"),
        ("tokenizer.train_vocabulary=300", "methods.slim reads log-probabilities of the teacher's own tokens"),
        ("teacher.knowledge={precision: bfloat16}", "teacher.knowledge.precision is the endpoint's own"),
        ("teacher.knowledge.top={k: null, mass: 0.9}", "methods.slim reads likely tokens, whose number"),
        ("evaluation.exposure_bias={}", "evaluation.exposure_bias compares whole distributions"),
        ("runtime.teacher_zero_stage=3", "runtime.teacher_zero_stage shards weights, which an endpoint does not give"),
        ("evaluation.top_k=5", "evaluation.top_k is no rule of an endpoint's sampling"),
        ("methods.kd={}", "methods.kd.divergence: forward_kl with teacher: live needs its weights"),
        ("methods.kd={teacher: hidden}", "methods.kd.teacher: hidden is made of weights; use teacher: top"),
        ("methods.kd={teacher: sampled}", "methods.kd.teacher: sampled is made of weights"),
        ("methods.minillm={training: {epochs: null, steps: 2}}", "methods.minillm.policy.credit: future and sin"),
        ("methods.on_policy={training: {epochs: null, steps: 2}}", "asks for each of 16 rollouts, above max_requests"),
        ("methods.gkd={training: {epochs: null, steps: 2}}", "methods.gkd.policy.credit: none and single_step: True"),
        ("methods.dpkd={}", "methods.dpkd.text: pairs compares with the running teacher"),
        ("teacher.model.path=somewhere", "give exactly one of `path`, `hub`, `architecture` and `endpoint`"),
        ("teacher.model.endpoint.max_cost=1", "`max_cost` needs `prices`"),
        ("teacher.model.endpoint.base_url=https://me:pass@example.org", "without user, key or query"),
        ("teacher.model.endpoint.api_key_variable=sk-abc", "is the name of an environment variable"),
        ("teacher.model.endpoint.refusals=['(']", "'(' is no regular expression"),
        ("teacher.model.endpoint.max_request=3", "did you mean `max_requests`"),
        ("teacher.model.endpoint.api_key_variable=NOT_SET", "api_key_variable: the environment has no NOT_SET; export"),
    ],
)  # fmt: skip
def test_what_it_cannot_give_is_refused_by_name(served, tmp_path, override, message):
    assert message in refusal(tmp_path, served, override)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I am unable to browse the web.", True),
        ("I cannot answer this.", True),
        ("Sorry, I don't know.", True),
        ("Unfortunately, I have no data.", True),
        ("As an AI language model, I have no feelings.", True),
        ("As an actor, I have many feelings.", False),
        ("I'm a nurse, and sorry is a word that I hear often.", False),
        ("I can play the piano.", False),
        ("The sorry state of the road is known. I cannot say more.", False),
    ],
)
def test_refusals_are_known_by_how_they_begin(served, tmp_path, text, refused):
    endpoint = load(tmp_path, served).teacher.model.endpoint
    assert endpoint is not None
    assert any(matches(pattern, text) for pattern in endpoint.refusals) is refused


def test_the_example_of_the_documentation_is_valid(served, tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    text = (ROOT / "docs" / "served-teacher.md").read_text(encoding="utf-8")
    served["teacher"] = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["teacher"]
    assert list(load(tmp_path, served).served) == ["teacher"]
