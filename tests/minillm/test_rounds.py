"""Rounds of rollouts: their scores by both models, computed by the passes that updates make, and their mini-batches."""

import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minillm.generation.rollouts import drawn_by_teacher
from minillm.models.batches import Limit, make_batch
from minillm.models.causal_lm import load_model
from minillm.models.output_head import output_head
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.streams import Purpose, stream
from minillm.training import on_policy
from minillm.training.on_policy import Rollouts
from minillm.training.rounds import Round
from tests.conftest import ROOT
from tests.minillm.models_in_small import ARCHITECTURES, response_logits, small_model
from tests.minillm.on_policy import rollout_feed

VOCABULARY = 101
PROMPTS = [[1 + (7 * i + j) % 100 for j in range(1 + i % 9)] for i in range(16)]
TIGHT = 1e-3
"""Clip range so tight that bfloat16's rounding in a pass of another shape leaves it at once."""


def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    return small_model("llama", VOCABULARY, seed=1, spread=0.3), small_model("llama", VOCABULARY, seed=2, spread=0.3)


def wide_model(architecture: str = "llama", seed: int = 1) -> PreTrainedModel:
    """Return a model in bfloat16, wide and deep enough for its rounding to show."""
    sizes = {
        "llama": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512},
        "gpt2": {"n_embd": 256, "n_layer": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    }
    fields = {**ARCHITECTURES[architecture], **sizes[architecture], "initializer_range": 0.08}
    config = AutoConfig.for_model(**fields, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def prepared(feed: Rollouts, micro: int = 4) -> Round:
    """Prepare and return the first round."""
    feed.prepare(0, Limit(rows=micro))
    assert feed.round is not None
    return feed.round


def outside(feed: Rollouts, step: int, micro: int) -> float:
    """Return the share of a mini-batch's tokens whose ratio is outside the clip, by the update's own passes."""
    return sum(float(losses()["clipped_share"]) for losses in feed.losses(step, Limit(rows=micro)))


def test_a_round_holds_what_full_forward_passes_say():
    student, teacher = models()
    entropies: list[list[Tensor]] = [[], []]
    with rollout_feed(student, teacher, PROMPTS, 12, {"teacher_mix": 0.4, "temperature": 0.8}) as feed:
        figures = feed.prepare(0, Limit(rows=4))
        found = feed.round
        assert found is not None
        assert found.prompts != PROMPTS
        assert sorted(found.prompts) == sorted(PROMPTS)
        for row, (prompt, response) in enumerate(zip(found.prompts, found.responses, strict=True)):
            batch, length = make_batch([prompt], [response]), len(response)
            tokens = torch.tensor(response)[:, None]
            of_student, of_teacher = (
                response_logits(model, batch, VOCABULARY)[0].detach() / 0.8 for model in (student, teacher)
            )
            kept = (found.experience.student_log_prob[row], found.experience.teacher_log_prob[row])
            for got, logits, entropy in zip(kept, (of_student, of_teacher), entropies, strict=True):
                log = torch.log_softmax(logits, dim=-1)
                entropy.append(-(log.exp() * log).sum(dim=-1))
                want = log.gather(1, tokens)[:, 0]
                torch.testing.assert_close(got[:length], want, rtol=1e-4, atol=1e-4)
            hidden, log_normalizer = found.teacher[row]
            torch.testing.assert_close(log_normalizer, of_teacher.logsumexp(dim=-1), rtol=1e-4, atol=1e-4)
            logits = hidden @ output_head(teacher, VOCABULARY).weight.T / 0.8
            torch.testing.assert_close(logits, of_teacher, rtol=1e-3, atol=1e-3)
    means = [float(torch.cat(of).mean()) for of in entropies]
    assert [figures["student_entropy"], figures["teacher_entropy"]] == pytest.approx(means, rel=1e-4)
    assert figures["length_ratio"] == sum(map(len, found.responses)) / (3 * len(PROMPTS))


def test_a_sampler_that_differs_from_the_scorer_shows():
    student, teacher = models()
    with rollout_feed(student, teacher, PROMPTS, 12, {"teacher_mix": 0.4}) as feed:
        found = prepared(feed)
        sampled = feed._sample(0, found.prompts)
    coins = torch.from_numpy(drawn_by_teacher(stream(Purpose.COINS, 1, 0), found.experience.mask.shape[1], 0.4))
    assert coins.any()

    def difference(from_teacher: Tensor) -> float:
        return found.figures(sampled, from_teacher, torch.zeros(1, 3), 1)["sampling_log_ratio"]

    assert difference(coins) < 1e-4
    assert difference(~coins) > 0.1
    sampled[3].log_prob[-1] += 0.5
    assert difference(coins) == pytest.approx(0.5, abs=1e-4)


def test_however_many_tokens_are_compared_the_round_is_the_same_to_the_bit(monkeypatch):
    rounds = []
    for count in (1, 20, 10**6):
        monkeypatch.setattr(on_policy, "COMPARED_TOKENS", count)
        student, teacher = models()
        with rollout_feed(student, teacher, PROMPTS, 12, {"teacher_mix": 0.4}) as feed:
            rounds.append(prepared(feed))
            lengths = [len(response) for response in rounds[-1].responses]
            masks = feed._compared(0, lengths)
        assert [len(mask) for mask in masks] == lengths
        assert int(torch.cat(masks).sum()) == min(count, sum(lengths))
    for other in rounds[1:]:
        assert other.responses == rounds[0].responses
        assert torch.equal(other.experience.student_log_prob, rounds[0].experience.student_log_prob)
        assert torch.equal(other.experience.teacher_log_prob, rounds[0].experience.teacher_log_prob)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_in_bfloat16_the_ratio_is_one_before_the_first_update(architecture, alpha):
    """This holds in every mini-batch of every inner epoch, for rows of all lengths."""
    student, teacher = wide_model(architecture), wide_model(architecture, seed=2)
    policy = {"teacher_mix": alpha, "clip_range": TIGHT, "inner_epochs": 3}
    with rollout_feed(student, teacher, PROMPTS, 40, policy, precision="bfloat16") as feed:
        assert len({len(response) for response in prepared(feed).responses}) > 4
        same, alone = (max(outside(feed, step, micro) for step in range(feed.steps_per_round)) for micro in (4, 1))
    assert same <= 0.01
    assert alone > same, "passes of another shape differ, by how much depends on the CPU"


def test_the_error_of_the_ratio_is_logged_once_a_round():
    with rollout_feed(wide_model(), wide_model(seed=2), PROMPTS, 40, {}, precision="bfloat16") as feed:
        prepared(feed)
        same, alone = (
            sum(float(losses()["policy_ratio_error"]) for losses in feed.losses(0, Limit(rows=micro)))
            for micro in (4, 1)
        )
        assert same < 1e-5
        assert alone > 3 * same, "passes of another shape differ, by how much depends on the CPU"
        assert alone > 1e-5
        assert not any(
            "policy_ratio_error" in losses() for step in (1, 2, 3) for losses in feed.losses(step, Limit(rows=4))
        )


def test_in_bfloat16_a_student_equal_to_its_teacher_has_nothing_to_learn():
    with rollout_feed(wide_model(), wide_model(), PROMPTS, 40, {}, precision="bfloat16") as feed:
        experience = prepared(feed).experience
        assert torch.equal(experience.student_log_prob, experience.teacher_log_prob)
        assert torch.equal(experience.importance_weight, experience.mask.float())
        assert not experience.credited_return.any()


def test_inner_epochs_take_the_same_mini_batches_in_orders_of_their_own():
    policy = {"rollouts": 32, "inner_epochs": 6}
    student, teacher = models()
    with rollout_feed(student, teacher, PROMPTS, 4, policy, batch_size=4) as feed:
        rounds = [[feed._rows(index * 48 + step) for step in range(48)] for index in range(2)]
    for steps in rounds:
        epochs = [steps[start : start + 8] for start in range(0, 48, 8)]
        for epoch in epochs:
            assert sorted(itertools.chain(*epoch)) == list(range(32))
            assert sorted(epoch) == sorted(epochs[0])
        assert len({str(epoch) for epoch in epochs}) == 6
    assert sorted(rounds[0]) != sorted(rounds[1])


def test_a_response_carries_its_own_tokens_only():
    """In a checkpoint it is pickled."""
    student, teacher = models()
    with rollout_feed(student, teacher, PROMPTS, 12, {}) as feed:
        found = prepared(feed)
        assert found.teacher.keys() == set(range(len(found.responses)))
        for row, (hidden, _) in found.teacher.items():
            assert len(pickle.dumps(hidden)) < len(found.responses[row]) * 32 * 4 + 1000


@pytest.fixture(scope="module")
def real_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fetch SmolLM2-135M-Instruct; skip the test if that fails."""
    script, folder = ROOT / "../shared/models/smollm2.sh", tmp_path_factory.mktemp("real") / "model"
    if not script.exists():
        pytest.skip(f"no real model: {script} is not there")
    done = subprocess.run(["bash", script, folder, sys.executable], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no real model: {script} failed: {done.stderr[-500:]}")
    return folder


@pytest.mark.long
def test_the_ratio_of_a_real_model_in_bfloat16_is_one_before_the_first_update(real_model):
    texts = ["What is the capital of France?", "Give me a recipe for bread.", "Tell me a joke about cats.", "Why?"]
    student, teacher = (load_model(real_model, torch.bfloat16, dropout=False) for _ in range(2))
    tokenizer = load_shared_tokenizer(real_model).tokenizer
    prompts = [tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")["input_ids"] for text in texts]
    policy = {"rollouts": 8, "clip_range": TIGHT}
    with rollout_feed(student, teacher, prompts, 48, policy, batch_size=4, precision="bfloat16") as feed:
        prepared(feed, micro=2)
        assert max(outside(feed, step, 2) for step in range(feed.steps_per_round)) <= 0.01
