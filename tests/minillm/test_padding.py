"""Padding never changes anything; a batch equals its rows computed alone (method.md §2)."""

import pytest
import torch

from minillm.config import Policy
from minillm.models.batches import Batch, make_batch, shuffled_slice
from minillm.models.output_head import output_head, response_hidden
from minillm.objectives.divergences import functional, reverse_kl
from minillm.objectives.losses import fixed_text_loss
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss, token_log_probs
from minillm.streams import Purpose
from minillm.training.rounds import policy_experience, policy_loss
from tests.minillm.models_in_small import ARCHITECTURES, VARIED, response_logits, small_model
from tests.minillm.test_vocabulary import DEFINITIONS, PARAMETERS

PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [13]]
RESPONSES = [[21, 0], [22, 23, 24, 25], [26, 27, 0]]
VOCABULARY = 101


def tolerance(name: str) -> float:
    """Return the tolerance: parts of some models in transformers are float32 at any precision of the model."""
    return 1e-6 if name == "gptj" or name in VARIED else 1e-10


def padded_further(batch: Batch, left: int, right: int) -> Batch:
    """Return the same rows with more padding, whose tokens are not zero."""
    rows = len(batch.tokens)
    junk_left, junk_right = torch.full((rows, left), 77), torch.full((rows, right), 78)
    tokens = torch.where(batch.mask, batch.tokens, torch.tensor(55))
    return Batch(
        torch.cat([junk_left, tokens, junk_right], dim=1),
        torch.cat([junk_left < 0, batch.mask, junk_right < 0], dim=1),
        torch.cat([batch.response_mask, junk_right < 0], dim=1),
        batch.prompt_width + left,
    )


@pytest.mark.parametrize("name", [*ARCHITECTURES, *VARIED])
def test_hidden_states_of_real_tokens_do_not_see_padding(name):
    model = small_model(name).double()
    batch = make_batch(PROMPTS, RESPONSES)
    alone = torch.cat([response_hidden(model, make_batch([p], [r])) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    for padded in (batch, padded_further(batch, 3, 2)):
        torch.testing.assert_close(response_hidden(model, padded), alone, rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", [*ARCHITECTURES, *VARIED])
def test_the_head_makes_the_models_own_logits_of_them(name):
    model = small_model(name).double()
    batch = make_batch(PROMPTS, RESPONSES)
    logits = output_head(model, VOCABULARY).logits(response_hidden(model, batch))
    want = response_logits(model, batch, VOCABULARY)[batch.response_mask]
    torch.testing.assert_close(logits, want, rtol=0, atol=tolerance(name))


def rollouts_of(student, teacher, prompts, responses):
    """Return what sampling would have kept of these responses."""
    scores = []
    for model in (student, teacher):
        batch = make_batch(prompts, responses)
        hidden = response_hidden(model, batch)
        tokens = batch.response[batch.response_mask]
        log_prob, normalizer = token_log_probs(hidden, output_head(model, VOCABULARY), tokens)
        padded = torch.zeros(batch.response.shape, dtype=log_prob.dtype).masked_scatter(batch.response_mask, log_prob)
        scores.append((padded, normalizer, hidden.detach()))
    return scores


@pytest.mark.parametrize("name", [*ARCHITECTURES, *VARIED])
def test_every_loss_of_a_batch_is_the_sum_of_its_rows(name):
    student, teacher = small_model(name, seed=1).double(), small_model(name, seed=2).double()

    def gradients(prompts, responses, extra_padding=0):
        policy = Policy()
        (of_student, *_), (of_teacher, normalizer, _) = rollouts_of(student, teacher, prompts, responses)
        experience = policy_experience(of_student, of_teacher, responses, policy)
        experience = experience.of(range(len(prompts)), torch.device("cpu"))
        batch = make_batch(prompts, responses)
        if extra_padding:
            batch = padded_further(batch, extra_padding, extra_padding)
        compared = Teacher(response_hidden(teacher, batch), output_head(teacher, VOCABULARY), normalizer)

        def per_token(terms, part):
            loss = policy_loss(terms, experience.part(part), policy)
            return loss.single_step + loss.long_term + fixed_text_loss(terms, 0.5)

        loss, _ = head_loss(
            response_hidden(student, batch),
            output_head(student, VOCABULARY),
            batch.response[batch.response_mask],
            per_token,
            reverse_kl,
            compared,
        )
        return loss.item(), torch.autograd.grad(loss, [p for p in student.parameters() if p.requires_grad])

    together, together_gradient = gradients(PROMPTS, RESPONSES)
    padded, padded_gradient = gradients(PROMPTS, RESPONSES, extra_padding=2)
    rows = [gradients([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(sum(loss for loss, _ in rows), rel=tolerance(name))
    assert padded == pytest.approx(together, rel=tolerance(name))
    for whole, extra, *parts in zip(together_gradient, padded_gradient, *(g for _, g in rows), strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=0, atol=10 * tolerance(name))
        torch.testing.assert_close(extra, whole, rtol=0, atol=10 * tolerance(name))


@pytest.mark.parametrize("divergence", [name for name in DEFINITIONS if name not in ("entropy", "cross_entropy")])
@pytest.mark.parametrize("name", VARIED)
def test_every_loss_has_the_value_and_gradient_of_the_models_own_logits(name, divergence):
    student, teacher = small_model(name, seed=1).double(), small_model(name, seed=2).double()
    batch = make_batch(PROMPTS, RESPONSES)
    tokens = batch.response[batch.response_mask]
    got, _ = head_loss(
        response_hidden(student, batch),
        output_head(student, VOCABULARY),
        tokens,
        lambda terms, part: terms.divergence - 0.5 * terms.log_prob,
        functional(divergence, **PARAMETERS.get(divergence, {})),
        Teacher(response_hidden(teacher, batch).detach(), output_head(teacher, VOCABULARY)),
        0.7,
    )
    logits = [response_logits(model, batch, VOCABULARY)[batch.response_mask] / 0.7 for model in (student, teacher)]
    law, of_teacher = (torch.softmax(each, dim=-1) for each in logits)
    want = (DEFINITIONS[divergence](law, of_teacher.detach()) - 0.5 * law.gather(1, tokens[:, None])[:, 0].log()).sum()
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    learnt = [parameter for parameter in student.parameters() if parameter.requires_grad]
    wanted = torch.autograd.grad(want, learnt, allow_unused=True)
    for gradient, right in zip(torch.autograd.grad(got, learnt, allow_unused=True), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=0, atol=1e-5)


def test_embedding_rows_beyond_the_tokenizer_change_nothing():
    """Qwen2.5: one tokenizer, 151,936 and 152,064 rows (method.md §6)."""
    model = small_model("qwen2", vocabulary=VOCABULARY)
    batch = make_batch(PROMPTS, RESPONSES)

    def logits():
        return output_head(model, VOCABULARY).logits(response_hidden(model, batch))

    before = logits()
    model.resize_token_embeddings(VOCABULARY + 27, mean_resizing=False)
    torch.testing.assert_close(logits(), before)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="row 1 has an empty prompt"):
        make_batch([[1], []], [[2], [3]])


def test_shuffled_examples_resume_anywhere():
    whole = shuffled_slice(5, Purpose.EXAMPLES, seed=3, start=0, number=17)
    assert sorted(whole[:5]) == [0, 1, 2, 3, 4]
    assert whole[:5] != whole[5:10]
    assert shuffled_slice(5, Purpose.EXAMPLES, seed=3, start=7, number=10) == whole[7:]
