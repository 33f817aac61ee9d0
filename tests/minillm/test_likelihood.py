"""Log-probabilities of given responses against the model's own whole logits, however they are batched."""

import numpy as np
import pytest
import torch

from minillm.errors import StageError
from minillm.evaluation.likelihood import likelihoods
from minillm.models.batches import Limit
from tests.minillm.direct import group_of_one
from tests.minillm.models_in_small import ARCHITECTURES, small_model

VOCABULARY = 101


@pytest.fixture(autouse=True)
def group():
    with group_of_one():
        yield


def make_pairs(count=11):
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 9, (count, 2))
    return [tuple(draw.integers(1, VOCABULARY, size).tolist() for size in of_pair) for of_pair in sizes]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"gptj"}))  # its attention is always float32
def test_each_response_by_itself_through_the_whole_logits(name):
    model, pairs = small_model(name).double(), make_pairs()
    for (prompt, response), found in zip(pairs, likelihoods(model, VOCABULARY, pairs, Limit(rows=4)), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        want = torch.log_softmax(logits, dim=-1)
        tokens = torch.tensor(response)
        np.testing.assert_allclose(found.log_prob, want.gather(1, tokens[:, None])[:, 0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(found.confidence, want.exp().amax(dim=-1), rtol=0, atol=1e-10)
        assert found.correct.tolist() == (want.argmax(dim=-1) == tokens).tolist()


def test_some_of_those_tokens_are_the_likeliest_and_some_are_not():
    model, pairs = small_model("gpt2"), make_pairs(200)
    correct = np.concatenate([found.correct for found in likelihoods(model, VOCABULARY, pairs, Limit(rows=50))])
    assert 0 < correct.sum() < len(correct) / 2


@pytest.mark.parametrize("size", [1, 3, 50])
def test_batches_change_nothing_but_their_own_number(size):
    model, pairs, told = small_model("llama").double(), make_pairs(), []
    alone_each = [likelihoods(model, VOCABULARY, [pair], Limit(rows=1))[0] for pair in pairs]
    together = likelihoods(model, VOCABULARY, pairs, Limit(rows=size), told.append)
    for one, other in zip(alone_each, together, strict=True):
        np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=0, atol=1e-10)
        np.testing.assert_allclose(one.likeliest, other.likeliest, rtol=0, atol=1e-10)
    assert told == [*range(size, len(pairs), size), len(pairs)]


def test_a_model_without_numbers_is_refused():
    model = small_model("gpt2")
    with torch.no_grad():
        model.get_parameter("transformer.ln_f.bias")[3] = float("nan")
    with pytest.raises(StageError, match="not a number on 11 of 11 texts, the first is number 0"):
        likelihoods(model, VOCABULARY, make_pairs(), Limit(rows=4))


def test_padded_rows_of_the_embedding_are_no_tokens():
    model = small_model("gpt2", vocabulary=VOCABULARY + 7).double()
    (found,) = likelihoods(model, VOCABULARY, [([3, 4], [5])], Limit(rows=1))
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4]])).logits[0, -1, :VOCABULARY]
    assert found.log_prob[0] == pytest.approx(float(torch.log_softmax(logits, dim=-1)[5]), abs=1e-10)


def test_half_precision_is_close_and_still_knows_the_likeliest():
    pairs = make_pairs(40)
    want = likelihoods(small_model("llama", spread=0.1), VOCABULARY, pairs, Limit(rows=8))
    got = likelihoods(small_model("llama", spread=0.1).bfloat16(), VOCABULARY, pairs, Limit(rows=8))
    for narrow, wide in zip(got, want, strict=True):
        assert (narrow.log_prob <= narrow.likeliest).all()
        np.testing.assert_allclose(narrow.log_prob, wide.log_prob, rtol=0, atol=0.05)
    agree = [(narrow.correct == wide.correct).mean() for narrow, wide in zip(got, want, strict=True)]
    assert np.mean(agree) > 0.95
