"""Rollouts drawn from p̃ by a coin have its law and do not depend on the schedule."""

import pytest
import torch

from minillm.generation import sampling
from minillm.generation.rollouts import RolloutSampler
from minillm.generation.slots import Request
from minillm.models.batches import make_batch
from minillm.streams import Purpose, generator, stream
from tests.minillm.models_in_small import ARCHITECTURES, VARIED, response_logits, small_model
from tests.minillm.test_sampling import ENDS, EOS, VOCABULARY, assert_follows, every_response, law_after

COINS = stream(Purpose.COINS, 3, 1)
ROUND = [Request([1 + i % 5] * (1 + i % 6), 3 + i % 7, stream(Purpose.ROLLOUTS, 10, 0, i)) for i in range(14)]


def sampler(student, teacher, alpha, batch_size=64, temperature=1.0, ends=ENDS):
    return RolloutSampler(student, teacher, ends, VOCABULARY, alpha, temperature, batch_size)


@pytest.mark.parametrize("ends", [ENDS, (EOS, 5, 2)])
def test_each_response_follows_the_mixture_of_probabilities(ends):
    """One response per round, so that the coins of different responses are independent and a χ² test holds."""
    student, teacher = small_model("gpt2", VOCABULARY, seed=1), small_model("gpt2", VOCABULARY, seed=2)
    mixed = sampler(student, teacher, 0.6, ends=ends)
    got = [
        tuple(mixed.sample([Request([3, 4], 2, stream(Purpose.ROLLOUTS, 1, i))], stream(Purpose.COINS, 1, i))[0].tokens)
        for i in range(1500)
    ]
    assert_follows(got, every_response(lambda x: 0.6 * law_after(teacher, x) + 0.4 * law_after(student, x), ends))


@pytest.mark.parametrize("row", [0, 1, 2])
def test_rows_that_share_their_coins_each_keep_that_law(row):
    student, teacher = small_model("gpt2", VOCABULARY, seed=3), small_model("gpt2", VOCABULARY, seed=4)
    mixed = sampler(student, teacher, 0.3)
    got = [
        tuple(
            mixed.sample(
                [Request([3, 4], 2, stream(Purpose.ROLLOUTS, 1, i, j)) for j in range(3)], stream(Purpose.COINS, 1, i)
            )[row].tokens
        )
        for i in range(800)
    ]
    assert_follows(got, every_response(lambda x: 0.3 * law_after(teacher, x) + 0.7 * law_after(student, x)))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *VARIED])
def test_tokens_are_drawn_with_the_probabilities_of_a_full_forward_pass(name, alpha):
    """Probabilities are those of the model that drew the token, however far it had to catch up with the other."""
    student, teacher = small_model(name, VOCABULARY, seed=1), small_model(name, VOCABULARY + 3, seed=2)
    responses = sampler(student, teacher, alpha, batch_size=5, temperature=0.8).sample(ROUND, COINS)
    from_teacher = torch.from_numpy(generator(COINS).random(9) < alpha)
    for request, response in zip(ROUND, responses, strict=True):
        batch = make_batch([request.prompt], [response.tokens])
        laws = (torch.log_softmax(response_logits(m, batch, VOCABULARY)[0] / 0.8, dim=-1) for m in (student, teacher))
        of_student, of_teacher = (law.gather(1, torch.tensor(response.tokens)[:, None])[:, 0].detach() for law in laws)
        want = torch.where(from_teacher[: len(response.tokens)], of_teacher, of_student)
        torch.testing.assert_close(response.log_prob.float(), want, rtol=1e-3, atol=1e-3)
        assert len(response.tokens) <= request.max_tokens
        assert EOS not in response.tokens[:-1]
        assert response.finished == (response.tokens[-1] == EOS)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("name", [*ARCHITECTURES, *VARIED])
def test_schedule_changes_nothing(name, alpha, monkeypatch):
    student, teacher = (small_model(name, VOCABULARY, seed=seed).double() for seed in (1, 2))
    want = [r.tokens for r in sampler(student, teacher, alpha).sample(ROUND, COINS)]
    assert len({tuple(tokens) for tokens in want}) > 7
    for batch_size in (1, 3, 5):
        assert [r.tokens for r in sampler(student, teacher, alpha, batch_size).sample(ROUND, COINS)] == want
    assert [r.tokens for r in sampler(student, teacher, alpha, 4).sample(ROUND[::-1], COINS)][::-1] == want
    monkeypatch.setattr(sampling, "HOST_STEPS", sampling.DEVICE_STEPS)
    late = sampler(student, teacher, alpha, 6).sample(ROUND, COINS)
    assert [r.tokens for r in late] == want


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9])
def test_how_seldom_the_host_looks_changes_nothing(alpha, monkeypatch):
    """Rows with different limits reach them between two looks, while ended rows wait for the other model."""
    student, teacher = (small_model("gpt2", VOCABULARY, seed=seed).double() for seed in (1, 2))
    cut = 0
    for seed in range(12):
        limits = [4 + (seed + 3 * i) % 11 for i in range(6)]
        requests = [Request([3, 4], limit, stream(Purpose.ROLLOUTS, seed, 0, i)) for i, limit in enumerate(limits)]
        found = []
        for looks in (1, 2, 5, 16, 1000):
            monkeypatch.setattr(sampling, "HOST_STEPS", looks)
            found.append(sampler(student, teacher, alpha).sample(requests, stream(Purpose.COINS, seed, 0)))
        cut += sum(rollout.tokens[-1] != EOS for rollout in found[0])
        for late in found[1:]:
            assert [r.tokens for r in late] == [r.tokens for r in found[0]]
            for got, want in zip(late, found[0], strict=True):
                torch.testing.assert_close(got.log_prob, want.log_prob)
    assert 0 < cut < 12 * 6


def test_the_teacher_runs_only_where_the_coin_falls():
    student, teacher = small_model("gpt2", VOCABULARY, seed=1), small_model("gpt2", VOCABULARY, seed=2)
    calls = {"student": 0, "teacher": 0}

    def counting(name):
        def hook(*_):
            calls[name] += 1

        return hook

    student.base_model.register_forward_hook(counting("student"))
    teacher.base_model.register_forward_hook(counting("teacher"))
    requests = [Request([3, 4], 100, stream(Purpose.ROLLOUTS, 5, 0, i)) for i in range(8)]
    rollouts = RolloutSampler(student, teacher, (), VOCABULARY, 0.2, 1.0, 8).sample(requests, COINS)
    assert {len(r.tokens) for r in rollouts} == {100}
    assert calls["student"] + calls["teacher"] == 100  # one model per token
    assert 8 <= calls["teacher"] <= 36
