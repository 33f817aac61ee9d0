"""The sampler draws from the right law, treats rows independently of their neighbours, and ends them correctly."""

import numpy as np
import pytest
import torch
from scipy import stats

from minillm.generation import sampling
from minillm.generation.drawing import BLOCK, Decoding, draw
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.batches import make_batch
from minillm.streams import Purpose, stream
from tests.minillm.models_in_small import ARCHITECTURES, response_logits, small_model

EOS = 0
ENDS = (EOS,)
VOCABULARY = 7


def requests(count, prompt=(3, 4), max_tokens=2, seed=0):
    return [Request(list(prompt), max_tokens, (seed, i)) for i in range(count)]


def logits_after(model, prefix):
    return response_logits(model, make_batch([prefix], [[0]]), VOCABULARY)[0, 0].double().detach()


def law_after(model, prefix):
    return torch.softmax(logits_after(model, prefix), dim=-1)


def assert_follows(got, expected):
    """Return the χ² test of observed keys against probabilities; keys expected fewer than five times form one class."""
    assert sum(expected.values()) == pytest.approx(1.0)
    likely = [key for key, p in expected.items() if p * len(got) >= 5]
    counts = np.array([sum(g == key for g in got) for key in likely])
    probabilities = np.array([expected[key] for key in likely])
    observed = np.append(counts, len(got) - counts.sum())
    wanted = np.append(probabilities, 1 - probabilities.sum()) * len(got)
    assert stats.chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


def every_response(law, ends=ENDS):
    """Return the probability of each response of at most two tokens, from the law after a prefix."""
    first_law = law([3, 4])
    expected = {}
    for first in range(VOCABULARY):
        if first in ends:
            expected[first,] = float(first_law[first])
            continue
        second_law = law([3, 4, first])
        expected |= {(first, second): float(first_law[first] * second_law[second]) for second in range(VOCABULARY)}
    return expected


@pytest.mark.parametrize("ends", [ENDS, (EOS, 5, 2)])
def test_responses_follow_the_model(ends):
    model = small_model("gpt2", VOCABULARY, seed=1)
    responses = Sampler(model, ends, VOCABULARY, batch_size=500).sample(requests(4000))
    assert_follows([tuple(r.tokens) for r in responses], every_response(lambda prefix: law_after(model, prefix), ends))
    assert all(r.finished == (r.tokens[-1] in ends) for r in responses)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_schedule_and_neighbours_change_nothing(name, monkeypatch):
    """In float64, responses and probabilities are the same token for token at any batch size, order and refill."""
    model = small_model(name, VOCABULARY, seed=1).double()
    wanted = [Request([1 + i % 5] * (1 + i % 6), 3 + i % 7, stream(Purpose.ANSWERS, 11, 0, i)) for i in range(14)]
    alone = [Sampler(model, ENDS, VOCABULARY).sample([r])[0] for r in wanted]
    schedules = [Sampler(model, ENDS, VOCABULARY, batch_size=n).sample(wanted) for n in (14, 3, 5)]
    schedules.append(Sampler(model, ENDS, VOCABULARY, batch_size=4).sample(wanted[::-1])[::-1])
    monkeypatch.setattr(sampling, "REFILL_SHARE", 0.7)
    schedules.append(Sampler(model, ENDS, VOCABULARY, batch_size=5).sample(wanted))
    for schedule in schedules:
        for got, want in zip(schedule, alone, strict=True):
            assert (got.tokens, got.finished) == (want.tokens, want.finished)
            torch.testing.assert_close(got.log_prob, want.log_prob, rtol=0, atol=1e-6)
    assert len({tuple(r.tokens) for r in alone}) > 7


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kept_log_probs_are_those_of_a_full_forward_pass(name):
    model = small_model(name, VOCABULARY, seed=1)
    wanted = [Request([1 + i % 5] * (1 + i % 6), 6, (2, i)) for i in range(9)]
    for request, response in zip(wanted, Sampler(model, ENDS, VOCABULARY, batch_size=4).sample(wanted), strict=True):
        logits = response_logits(model, make_batch([request.prompt], [response.tokens]), VOCABULARY)[0]
        log_probs = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(response.tokens)[:, None]).squeeze(1)
        torch.testing.assert_close(response.log_prob.float(), log_probs.detach(), rtol=1e-4, atol=1e-4)


def test_a_response_ends_with_eos_or_at_its_limit():
    model = small_model("gpt2", VOCABULARY, seed=1)
    responses = Sampler(model, ENDS, VOCABULARY).sample(requests(300, max_tokens=5))
    assert {r.finished for r in responses} == {True, False}
    for r in responses:
        assert EOS not in r.tokens[:-1]
        assert r.finished == (r.tokens[-1] == EOS)
        assert len(r.tokens) == 5 or r.finished
        assert len(r.log_prob) == len(r.tokens)


def test_looking_for_ends_less_often_changes_nothing(monkeypatch):
    """On an accelerator the host checks only every few steps which rows have ended; here it does the same."""
    model = small_model("gpt2", VOCABULARY, seed=1).double()
    wanted = [Request([1 + i % 5] * (1 + i % 4), 2 + i % 9, (4, i)) for i in range(20)]
    want = Sampler(model, ENDS, VOCABULARY, batch_size=6).sample(wanted)
    monkeypatch.setattr(sampling, "HOST_STEPS", sampling.DEVICE_STEPS)
    got = Sampler(model, ENDS, VOCABULARY, batch_size=6).sample(wanted)
    assert [(r.tokens, r.finished) for r in got] == [(r.tokens, r.finished) for r in want]


def test_no_requests_no_responses():
    assert Sampler(small_model("gpt2", VOCABULARY), ENDS, VOCABULARY).sample([]) == []


def test_padded_embedding_rows_are_never_sampled():
    model = small_model("gpt2", 50, seed=1)
    responses = Sampler(model, ENDS, VOCABULARY).sample(requests(200, max_tokens=4))
    assert max(max(r.tokens) for r in responses) < VOCABULARY


def test_no_repeat_ngram():
    model = small_model("gpt2", VOCABULARY, seed=3)
    responses = Sampler(model, (), VOCABULARY, Decoding(no_repeat_ngram=2)).sample(requests(20, max_tokens=12))
    for r in responses:
        pairs = list(zip(r.tokens, r.tokens[1:], strict=False))
        assert len(pairs) == len(set(pairs))


def test_greedy_takes_the_likeliest():
    model = small_model("gpt2", VOCABULARY, seed=1)
    (response,) = Sampler(model, (), VOCABULARY, Decoding("greedy")).sample(requests(1, max_tokens=5))
    prefix = [3, 4]
    for token in response.tokens:
        assert token == int(logits_after(model, prefix).argmax())
        prefix.append(token)


@pytest.mark.parametrize(
    ("decoding", "kept"),
    [(Decoding(top_k=3), 3), (Decoding(top_p=0.97), None), (Decoding(temperature=0.5), VOCABULARY)],
)
def test_truncated_and_tempered_laws(decoding, kept):
    model = small_model("gpt2", VOCABULARY, seed=1)

    def law(prefix):
        probabilities = torch.softmax(logits_after(model, prefix) / decoding.temperature, dim=-1)
        ordered = probabilities.sort(descending=True)
        count = kept or int((ordered.values.cumsum(0) < decoding.top_p).sum()) + 1
        return torch.zeros(VOCABULARY).double().scatter(0, ordered.indices[:count], ordered.values[:count]) / float(
            ordered.values[:count].sum()
        )

    got = [tuple(r.tokens) for r in Sampler(model, ENDS, VOCABULARY, decoding, 1000).sample(requests(3000, seed=5))]
    expected = {key: p for key, p in every_response(law).items() if p > 0}
    assert set(got) <= set(expected)
    assert_follows(got, expected)


def test_draw_inverts_the_cumulative_distribution():
    logits = torch.tensor([[0.0, 0.25, 0.0, 0.75]] * 4, dtype=torch.float64).log()
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.9999999], dtype=torch.float64)
    drawn = draw(logits, uniform)
    assert drawn.token.tolist() == [1, 1, 3, 3]
    torch.testing.assert_close(drawn.log_prob.exp(), torch.tensor([0.25, 0.25, 0.75, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_draw_by_blocks_is_the_draw_over_all(size):
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(2000, size, generator=generator, dtype=torch.float64)
    uniform = torch.rand(2000, generator=generator, dtype=torch.float64)
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    want = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    drawn = draw(logits, uniform)
    assert (drawn.token != want).sum() == 0
    torch.testing.assert_close(drawn.log_normalizer, torch.logsumexp(logits, dim=-1))


def test_draw_never_takes_what_is_forbidden():
    """Float32 sums of blocks and of their entries differ by rounding; numbers at the edges must still be found."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 3 * BLOCK + 5, generator=generator)
    logits[torch.rand(logits.shape, generator=generator) < 0.9] = -torch.inf
    logits[:, 0] = 0.0
    uniform = torch.rand(4000, generator=generator, dtype=torch.float64)
    uniform[:1000], uniform[1000:2000] = 0.0, 1 - 2**-53
    drawn = draw(logits, uniform)
    assert torch.isfinite(drawn.log_prob).all()


def test_a_streamed_response_is_the_sampled_one_token_by_token(monkeypatch):
    model = small_model("gpt2", VOCABULARY, seed=1)
    sampler = Sampler(model, ENDS, VOCABULARY, Decoding(temperature=0.7, top_p=0.9))
    for looks in (1, sampling.DEVICE_STEPS):
        monkeypatch.setattr(sampling, "HOST_STEPS", looks)
        for request in requests(20, max_tokens=9):
            (want,) = sampler.sample([request])
            got = list(sampler.stream(request))
            assert [r.tokens for r in got][: len(want.tokens)] == [
                want.tokens[: n + 1] for n in range(len(want.tokens))
            ]
            assert got[-1].finished == want.finished
            torch.testing.assert_close(got[-1].log_prob, want.log_prob, rtol=0, atol=0)
    assert torch.is_grad_enabled()
