"""Rounds from the data and from earlier rounds: GKD's and DistiLLM's choices, and the losses on them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from minillm.config import Policy
from minillm.config.presets import presets
from minillm.models.batches import Limit
from minillm.training.fixed_text import FixedText
from minillm.training.on_policy import Rollouts
from minillm.training.round_source import RoundSource
from tests.minillm.models_in_small import small_model
from tests.minillm.on_policy import rollout_feed
from tests.minillm.trainings import method

VOCABULARY = 101
PROMPTS = [[1 + (7 * i + j) % 100 for j in range(1 + i % 5)] for i in range(16)]
ANSWERS = [[2 + (3 * i + j) % 90 for j in range(1 + i % 4)] + [0] for i in range(16)]
OFF = {"teacher_mix": 0.0, "credit": "none", "plain_text_coefficient": 0.0}


def source(rounds: int = 1000, **changes: Any) -> RoundSource:
    return RoundSource(Policy.model_validate({**OFF, "rollouts": 4, **changes}), seed=1, rounds=rounds)


def test_a_round_of_the_data_is_word_level_distillation_on_it():
    student, teacher = (small_model("llama", VOCABULARY, seed=seed, spread=0.3) for seed in (1, 2))
    policy = {**OFF, "student_share": 0.0, "inner_epochs": 1, "rollouts": 8}
    with rollout_feed(student, teacher, PROMPTS, 8, policy) as feed:
        feed.examples = pd.DataFrame({"prompt_ids": PROMPTS, "response_ids": ANSWERS})
        assert feed.prepare(0, Limit(rows=4)) == {}, "nothing was sampled, so there is nothing to tell of it"
        assert feed.round is not None
        rows = [PROMPTS.index(prompt) for prompt in feed.round.prompts]
        assert feed.round.responses == [ANSWERS[row] for row in rows]
        got = sum(float(losses()["loss"]) for losses in feed.losses(0, Limit(rows=4)))
        turns = [[{"start": 0, "end": len(answer)}] for answer in ANSWERS]
        text = FixedText(
            feed.models,
            method("kd").model_copy(update={"divergence": "reverse_kl", "divergence_weight": 1.0}),
            feed.examples.assign(turns=turns),
            seed=1,
        )
        tokens = sum(len(ANSWERS[row]) for row in rows)
        want = float(text._losses(rows, tokens)["loss"])
    assert got == pytest.approx(want, rel=1e-5)


def test_half_of_the_rounds_are_the_datas():
    chosen = [source(student_share=0.5).choose(index) for index in range(1000)]
    assert set(chosen) == {"student", "dataset"}
    assert 440 <= chosen.count("dataset") <= 560  # 3.8 standard deviations of 15.8


def test_a_share_of_one_samples_every_round():
    assert {source().choose(index) for index in range(1000)} == {"student"}


def test_an_adaptive_share_rises_with_the_validation_loss():
    adaptive = source(student_share="adaptive")
    shares = []
    for loss in (2.0, 1.5, 2.09, 2.1, 2.15, 2.3, 9.0):
        adaptive.validated(loss)
        shares.append(round(adaptive.share, 1))
    assert shares == [0.0, 0.0, 0.0, 0.1, 0.1, 0.2, 0.3]
    for number in range(20):
        adaptive.validated(10.0 + number)
    assert adaptive.share == 1.0
    fixed = source(student_share=0.5)
    fixed.validated(1.0)
    fixed.validated(9.0)
    assert fixed.share == 0.5


def test_kept_rollouts_take_the_place_of_sampling_more_and_more():
    buffer = source(replay=8)
    assert [buffer.choose(index) for index in (0, 999)] == ["student", "student"], "there are none yet"
    buffer.keep([([n], [n]) for n in range(3)])
    assert buffer.choose(999) == "student", "too few are kept"
    buffer.keep([([n], [n]) for n in range(3, 12)])
    assert [prompt for prompt, _ in buffer.kept] == [[n] for n in range(4, 12)], "the oldest went"
    chosen = [buffer.choose(index) for index in range(1000)]
    early, late = chosen[:500].count("replay"), chosen[500:].count("replay")
    assert 85 <= early <= 165  # a quarter of 500
    assert 335 <= late <= 415  # three quarters
    drawn = buffer.replay(7)
    assert len({prompt[0] for prompt, _ in drawn}) == 4
    assert all(pair in buffer.kept for pair in drawn)
    assert buffer.replay(7) == drawn
    again = source(replay=8)
    again.restore(buffer.state())
    assert (again.replay(7), again.share) == (drawn, 1.0)


def test_a_replayed_round_is_learnt_from_like_any_other():
    student, teacher = (small_model("llama", VOCABULARY, seed=seed, spread=0.3) for seed in (1, 2))
    with rollout_feed(student, teacher, PROMPTS, 8, {**OFF, "replay": 8, "rollouts": 8, "inner_epochs": 1}) as feed:
        assert feed.prepare(0, Limit(rows=8))["response_tokens"] > 0
        assert feed.round is not None
        first = sorted(zip(feed.round.prompts, feed.round.responses, strict=True))
        feed.source.rounds = 1  # past its end, only kept rollouts are taken
        assert feed.prepare(1, Limit(rows=8)) == {}
        assert feed.round.index == 1
        assert sorted(zip(feed.round.prompts, feed.round.responses, strict=True)) == first
        (loss,) = [float(losses()["loss"]) for losses in feed.losses(1, Limit(rows=8))]
        assert loss > 0
        state = feed.state()
        feed.round, feed.source = None, source(replay=8)
        feed.restore([state])
        assert feed.source.state() == state["source"]


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_method_by_name_is_on_the_page(name: str):
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert f"| `{name}` |" in page.read_text(encoding="utf-8")


def test_on_policy_distillation_is_a_case_of_minillm():
    """Its loss is the policy gradient with each token's own reward, and nothing else."""
    student, teacher = (small_model("llama", VOCABULARY, seed=seed, spread=0.3) for seed in (1, 2))
    policy = {**presets()["on_policy"]["policy"], "rollouts": 8}
    with rollout_feed(student, teacher, PROMPTS, 8, policy) as feed:
        assert isinstance(feed, Rollouts)
        feed.prepare(0, Limit(rows=8))
        assert feed.round is not None
        experience = feed.round.experience
        reward = (experience.teacher_log_prob - experience.student_log_prob)[experience.mask]
        torch.testing.assert_close(experience.credited_return[experience.mask], reward)
        (losses,) = [losses() for losses in feed.losses(0, Limit(rows=8))]
        assert float(losses["single_step"]) == 0
        assert float(losses["loss"]) == pytest.approx(-float(reward.mean()), rel=1e-4)  # ρ is 1
