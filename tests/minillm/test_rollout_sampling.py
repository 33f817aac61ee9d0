"""Rollouts from p̃ by a coin: their law, what is kept of both models, their independence of the schedule."""

import pickle

import pytest
import torch

from minillm.generation import sampling
from minillm.generation.rollouts import RolloutSampler
from minillm.generation.slots import Request
from minillm.models.batches import make_batch
from minillm.models.output_head import response_hidden
from tests.minillm.models_in_small import ARCHITECTURES, response_logits, small_model
from tests.minillm.test_sampling import ENDS, EOS, VOCABULARY, assert_follows, every_response, law_after

ROUND = [Request([1 + i % 5] * (1 + i % 6), 3 + i % 7, (9, i)) for i in range(14)]


def sampler(student, teacher, alpha, batch_size=64, temperature=1.0, ends=ENDS):
    return RolloutSampler(student, teacher, ends, VOCABULARY, alpha, temperature, batch_size, 4)


@pytest.mark.parametrize("ends", [ENDS, (EOS, 5, 2)])
def test_each_response_follows_the_mixture_of_probabilities(ends):
    """One response per round, so that the coins of different responses are independent and a χ² test holds."""
    student, teacher = small_model("gpt2", VOCABULARY, seed=1), small_model("gpt2", VOCABULARY, seed=2)
    mixed = sampler(student, teacher, 0.6, ends=ends)
    got = [tuple(mixed.sample([Request([3, 4], 2, (1, i))], (0, i))[0].tokens) for i in range(1500)]
    assert_follows(got, every_response(lambda x: 0.6 * law_after(teacher, x) + 0.4 * law_after(student, x), ends))


@pytest.mark.parametrize("row", [0, 1, 2])
def test_rows_that_share_their_coins_each_keep_that_law(row):
    student, teacher = small_model("gpt2", VOCABULARY, seed=3), small_model("gpt2", VOCABULARY, seed=4)
    mixed = sampler(student, teacher, 0.3)
    got = [tuple(mixed.sample([Request([3, 4], 2, (j, i)) for j in range(3)], (7, i))[row].tokens) for i in range(800)]
    assert_follows(got, every_response(lambda x: 0.3 * law_after(teacher, x) + 0.7 * law_after(student, x)))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_kept_is_what_full_forward_passes_say(name, alpha):
    student, teacher = small_model(name, VOCABULARY, seed=1), small_model(name, VOCABULARY + 3, seed=2)
    rollouts = sampler(student, teacher, alpha, batch_size=5, temperature=0.8).sample(ROUND, (3, 1))
    for request, rollout in zip(ROUND, rollouts, strict=True):
        batch = make_batch([request.prompt], [rollout.tokens])
        tokens = torch.tensor(rollout.tokens)[:, None]
        of_student, of_teacher = (response_logits(m, batch, VOCABULARY)[0] / 0.8 for m in (student, teacher))
        for kept, logits in ((rollout.student_log_prob, of_student), (rollout.teacher_log_prob, of_teacher)):
            want = torch.log_softmax(logits, dim=-1).gather(1, tokens).squeeze(1)
            torch.testing.assert_close(kept.float(), want.detach(), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            rollout.teacher_log_normalizer, of_teacher.logsumexp(dim=-1).detach(), rtol=1e-4, atol=1e-4
        )
        hidden = response_hidden(teacher, batch).detach()
        torch.testing.assert_close(rollout.teacher_hidden, hidden, rtol=1e-3, atol=1e-3)
        assert len(rollout.tokens) <= request.max_tokens
        assert EOS not in rollout.tokens[:-1]


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_schedule_changes_nothing(name, alpha, monkeypatch):
    student, teacher = (small_model(name, VOCABULARY, seed=seed).double() for seed in (1, 2))
    want = [r.tokens for r in sampler(student, teacher, alpha).sample(ROUND, (3, 1))]
    assert len({tuple(tokens) for tokens in want}) > 7
    for batch_size in (1, 3, 5):
        assert [r.tokens for r in sampler(student, teacher, alpha, batch_size).sample(ROUND, (3, 1))] == want
    assert [r.tokens for r in sampler(student, teacher, alpha, 4).sample(ROUND[::-1], (3, 1))][::-1] == want
    monkeypatch.setattr(sampling, "HOST_STEPS", sampling.DEVICE_STEPS)
    late = sampler(student, teacher, alpha, 6).sample(ROUND, (3, 1))
    assert [r.tokens for r in late] == want
    assert all(len(r.tokens) == len(r.teacher_log_prob) == len(r.teacher_hidden) for r in late)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_a_rollout_carries_its_own_tokens_only(alpha):
    """Between processes it is pickled, and in a checkpoint saved."""
    student, teacher = small_model("gpt2", VOCABULARY, seed=1), small_model("gpt2", VOCABULARY, seed=2)
    few, many = (sampler(student, teacher, alpha).sample(ROUND[:n], (3, 1)) for n in (2, 14))
    assert len(few[0].tokens) == len(many[0].tokens)
    assert len(pickle.dumps(many[0])) == len(pickle.dumps(few[0]))


def test_the_teacher_runs_only_where_the_coin_falls():
    student, teacher = small_model("gpt2", VOCABULARY, seed=1), small_model("gpt2", VOCABULARY, seed=2)
    calls = {"student": 0, "teacher": 0}

    def counting(name):
        def hook(*_):
            calls[name] += 1

        return hook

    student.base_model.register_forward_hook(counting("student"))
    teacher.base_model.register_forward_hook(counting("teacher"))
    requests = [Request([3, 4], 100, (5, i)) for i in range(8)]
    rollouts = RolloutSampler(student, teacher, (), VOCABULARY, 0.2, 1.0, 8, 8).sample(requests, (11,))
    assert {len(r.tokens) for r in rollouts} == {100}
    assert calls["student"] + calls["teacher"] <= 100 + 2  # one model per token, and each may catch up at the end
    assert 8 <= calls["teacher"] <= 36
