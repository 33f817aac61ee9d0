"""The sampler: its law, its independence of what is beside a row, its ends."""

import numpy as np
import pytest
import torch
from scipy import stats

from minillm.generation.sampling import Request, Sampler, _draw
from minillm.models.batches import make_batch
from minillm.models.causal_lm import response_logits
from tests.minillm.models_in_small import ARCHITECTURES, small_model

EOS = 0
VOCABULARY = 7


def requests(count, prompt=(3, 4), max_tokens=2, seed=0):
    return [Request(list(prompt), max_tokens, (seed, i)) for i in range(count)]


def next_token_law(model, prefix):
    batch = make_batch([prefix], [[0]])
    return torch.softmax(response_logits(model, batch, VOCABULARY)[0, 0].double(), dim=-1).detach()


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.6])
def test_responses_follow_the_mixture_of_probabilities(alpha):
    student, teacher = small_model("gpt2", VOCABULARY, seed=1), small_model("gpt2", VOCABULARY, seed=2)
    mixture = [(student, 1 - alpha)] + ([(teacher, alpha)] if alpha else [])
    sampler = Sampler(mixture, EOS, VOCABULARY, batch_size=4000)
    got = [tuple(r.tokens) for r in sampler.sample(requests(4000))]
    expected = {}
    for first in range(VOCABULARY):
        law = torch.stack([w * next_token_law(m, [3, 4]) for m, w in mixture]).sum(dim=0)
        if first == EOS:
            expected[first,] = float(law[first])
            continue
        after = torch.stack([w * next_token_law(m, [3, 4, first]) for m, w in mixture]).sum(dim=0)
        expected |= {(first, second): float(law[first] * after[second]) for second in range(VOCABULARY)}
    assert sum(expected.values()) == pytest.approx(1.0)
    likely = [key for key, p in expected.items() if p * len(got) >= 5]
    counts = np.array([sum(g == key for g in got) for key in likely])
    probabilities = np.array([expected[key] for key in likely])
    rest = len(got) - counts.sum(), 1 - probabilities.sum()
    observed, wanted = np.append(counts, rest[0]), np.append(probabilities, rest[1]) * len(got)
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_neighbours_change_nothing(name):
    model = small_model(name, VOCABULARY, seed=1).double()
    wanted = [Request([1 + i % 5] * (1 + i), 3 + i, (9, i)) for i in range(6)]
    alone = [Sampler([(model, 1.0)], EOS, VOCABULARY).sample([r])[0] for r in wanted]
    together = Sampler([(model, 1.0)], EOS, VOCABULARY, batch_size=6).sample(wanted)
    other_way = Sampler([(model, 1.0)], EOS, VOCABULARY, batch_size=2).sample(wanted[::-1])[::-1]
    assert together == alone == other_way


def test_a_response_ends_with_eos_or_at_its_limit():
    model = small_model("gpt2", VOCABULARY, seed=1)
    responses = Sampler([(model, 1.0)], EOS, VOCABULARY).sample(requests(300, max_tokens=5))
    assert {r.finished for r in responses} == {True, False}
    for r in responses:
        assert EOS not in r.tokens[:-1]
        assert r.finished == (r.tokens[-1] == EOS)
        assert len(r.tokens) == 5 or r.finished


def test_padded_embedding_rows_are_never_sampled():
    model = small_model("gpt2", 50, seed=1)
    responses = Sampler([(model, 1.0)], EOS, VOCABULARY).sample(requests(200, max_tokens=4))
    assert max(max(r.tokens) for r in responses) < VOCABULARY


def test_no_repeat_ngram():
    model = small_model("gpt2", VOCABULARY, seed=3)
    responses = Sampler([(model, 1.0)], -1, VOCABULARY, no_repeat_ngram=2).sample(requests(20, max_tokens=12))
    for r in responses:
        pairs = list(zip(r.tokens, r.tokens[1:], strict=False))
        assert len(pairs) == len(set(pairs))


def test_temperature_sharpens():
    model = small_model("gpt2", VOCABULARY, seed=1)
    top = int(next_token_law(model, [3, 4]).argmax())
    share = {
        t: np.mean(
            [
                r.tokens[0] == top
                for r in Sampler([(model, 1.0)], EOS, VOCABULARY, t).sample(requests(400, max_tokens=1))
            ]
        )
        for t in (1.0, 0.2)
    }
    assert share[0.2] > share[1.0]


def test_draw_inverts_the_cumulative_distribution():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75]] * 4, dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.9999999], dtype=torch.float64)
    assert _draw(probabilities, uniform).tolist() == [1, 1, 3, 3]
