"""Padding never changes anything; a batch equals its rows computed alone (method.md §2)."""

import pytest
import torch

from minillm.config import Policy
from minillm.models.batches import Batch, make_batch, shuffled_stream
from minillm.models.causal_lm import response_logits
from minillm.objectives.divergences import fixed_text_loss
from minillm.objectives.losses import rollout_loss
from minillm.objectives.rollouts import make_experience, score_rollouts
from tests.minillm.models_in_small import ARCHITECTURES, small_model

PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [13]]
RESPONSES = [[21, 0], [22, 23, 24, 25], [26, 27, 0]]
VOCABULARY = 101


def tolerance(name: str) -> float:
    """GPT-J's attention in transformers is float32 whatever the model's precision."""
    return 1e-6 if name == "gptj" else 1e-10


def padded_further(batch: Batch, left: int, right: int) -> Batch:
    """The same rows with more padding, whose tokens are not zero."""
    rows = len(batch.tokens)
    junk_left, junk_right = torch.full((rows, left), 77), torch.full((rows, right), 78)
    tokens = torch.where(batch.mask, batch.tokens, torch.tensor(55))
    return Batch(
        torch.cat([junk_left, tokens, junk_right], dim=1),
        torch.cat([junk_left < 0, batch.mask, junk_right < 0], dim=1),
        batch.prompt_width + left,
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_of_real_tokens_do_not_see_padding(name):
    model = small_model(name).double()
    batch = make_batch(PROMPTS, RESPONSES)
    together = response_logits(model, batch, VOCABULARY)
    further = response_logits(model, padded_further(batch, 3, 2), VOCABULARY)
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        alone = response_logits(model, make_batch([prompt], [response]), VOCABULARY)[0]
        torch.testing.assert_close(together[row, : len(response)], alone, rtol=0, atol=tolerance(name))
        torch.testing.assert_close(further[row, : len(response)], alone, rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_loss_of_a_batch_is_the_sum_of_its_rows(name):
    student, teacher = small_model(name, seed=1).double(), small_model(name, seed=2).double()

    def gradients(prompts, responses, extra_padding=0):
        policy = Policy()
        experience = make_experience(
            *score_rollouts(student, teacher, prompts, responses, VOCABULARY, 1.0, micro_batch_size=2),
            responses,
            policy,
        )
        batch = make_batch(prompts, responses)
        width = batch.response.shape[1] + extra_padding
        if extra_padding:
            batch = padded_further(batch, extra_padding, extra_padding)
            experience = type(experience)(
                *(torch.nn.functional.pad(value, (0, extra_padding)) for value in vars(experience).values())
            )
        student_logits = response_logits(student, batch, VOCABULARY)
        teacher_logits = response_logits(teacher, batch, VOCABULARY)
        rollout = rollout_loss(student_logits, teacher_logits, batch.response, experience, policy)
        fixed = fixed_text_loss(student_logits, batch.response, teacher_logits, "forward_kl", 0.5)
        assert fixed.shape == (len(prompts), width)
        loss = ((rollout.single_step + rollout.long_term + fixed) * batch.response_mask).sum()
        return loss.item(), torch.autograd.grad(loss, [p for p in student.parameters() if p.requires_grad])

    together, together_gradient = gradients(PROMPTS, RESPONSES)
    padded, padded_gradient = gradients(PROMPTS, RESPONSES, extra_padding=2)
    rows = [gradients([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(sum(loss for loss, _ in rows), rel=tolerance(name))
    assert padded == pytest.approx(together, rel=tolerance(name))
    for whole, extra, *parts in zip(together_gradient, padded_gradient, *(g for _, g in rows), strict=True):
        torch.testing.assert_close(whole, sum(parts), rtol=0, atol=10 * tolerance(name))
        torch.testing.assert_close(extra, whole, rtol=0, atol=10 * tolerance(name))


def test_policy_ratio_is_one_before_the_first_update():
    student, teacher = small_model("gpt2", seed=1), small_model("gpt2", seed=2)
    policy = Policy()
    experience = make_experience(
        *score_rollouts(student, teacher, PROMPTS, RESPONSES, VOCABULARY, 1.0, micro_batch_size=3), RESPONSES, policy
    )
    batch = make_batch(PROMPTS, RESPONSES)
    loss = rollout_loss(
        response_logits(student, batch, VOCABULARY),
        response_logits(teacher, batch, VOCABULARY),
        batch.response,
        experience,
        policy,
    )
    assert (loss.policy_ratio[batch.response_mask] == 1.0).all()


def test_embedding_rows_beyond_the_tokenizer_change_nothing():
    """Qwen2.5: one tokenizer, 151,936 and 152,064 rows (method.md §6)."""
    model = small_model("qwen2", vocabulary=VOCABULARY)
    batch = make_batch(PROMPTS, RESPONSES)
    before = response_logits(model, batch, VOCABULARY)
    model.resize_token_embeddings(VOCABULARY + 27, mean_resizing=False)
    torch.testing.assert_close(response_logits(model, batch, VOCABULARY), before)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="row 1 has an empty prompt"):
        make_batch([[1], []], [[2], [3]])


def test_shuffled_stream_resumes_anywhere():
    from itertools import islice

    whole = list(islice(shuffled_stream(5, seed=3, start=0), 17))
    assert sorted(whole[:5]) == [0, 1, 2, 3, 4]
    assert whole[:5] != whole[5:10]
    assert list(islice(shuffled_stream(5, seed=3, start=7), 10)) == whole[7:]
