"""A round of rollouts, and the mathematics on it with the switches of a configured policy."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minillm.config import Policy
from minillm.generation.slots import Response
from minillm.objectives.agreement import TOP
from minillm.objectives.experience import Experience, make_experience
from minillm.objectives.losses import RolloutLoss, rollout_loss
from minillm.objectives.terms import TokenTerms

COMPARED = ("student_entropy", "teacher_entropy", f"top_{TOP}_overlap")
"""Figures of both models' distributions, as `agreement` gives them; a teacher that runs elsewhere leaves the first."""


@dataclass
class Round:
    """One round of rollouts and the values computed from it once."""

    index: int
    prompts: list[list[int]]
    responses: list[list[int]]
    experience: Experience
    teacher: dict[int, tuple[Tensor, ...]]
    """What the teacher keeps by response, so that it runs once per round, not per epoch: its last hidden states (T, H)
    and log Σ exp of its logits (T,). Only of the responses that this process updates on: they are much larger than all
    else here. Nothing of a teacher that runs elsewhere.
    """

    def figures(
        self, sampled: Sequence[Response], from_teacher: Tensor, compared: Tensor, reference_tokens: int
    ) -> dict[str, float]:
        """Return the figures of a round that has just been scored, for the log (method.md §3).

        Args:
            sampled: The responses as they were sampled.
            from_teacher: Whether the teacher drew the tokens at each position, (T,) bool.
            compared: The first F of `COMPARED` at some of the tokens, (M, F).
            reference_tokens: Tokens of the data's responses to the same prompts.
        """
        experience, count = self.experience, len(sampled)
        tokens = experience.mask.sum()  # ()
        reward = (experience.teacher_log_prob - experience.student_log_prob) * experience.mask  # (N, T)
        drawn = experience.teacher_log_prob.where(from_teacher, experience.student_log_prob)  # (N, T)
        return {
            **dict(zip(COMPARED, compared.mean(dim=0).tolist(), strict=False)),
            "finished": sum(response.finished for response in sampled) / count,
            "repeated_4_grams": repeated_n_grams(self.responses, 4),
            "length_ratio": float(tokens) / reference_tokens,
            "sampling_log_ratio": max(
                float((scored[: len(response.tokens)] - response.log_prob).abs().max())
                for scored, response in zip(drawn, sampled, strict=True)
            ),
            "reward": float(reward.sum() / tokens),
            "importance_weight": float(experience.importance_weight.sum() / tokens),
            "response_tokens": float(tokens / count),
        }


def repeated_n_grams(responses: Sequence[Sequence[int]], n: int) -> float:
    """Return the share of n-grams that have occurred before in the same response, over all responses; 0 without any."""
    grams = [list(zip(*(response[start:] for start in range(n)), strict=False)) for response in responses]
    total = sum(map(len, grams))
    return 1 - sum(len(set(of)) for of in grams) / total if total else 0.0


def policy_experience(
    student_log_prob: Tensor, teacher_log_prob: Tensor, responses: Sequence[Sequence[int]], policy: Policy
) -> Experience:
    """Return `make_experience` with a policy's switches."""
    return make_experience(
        student_log_prob,
        teacher_log_prob,
        responses,
        teacher_mix=policy.teacher_mix,
        credit=policy.credit,
        discount=policy.discount,
        length_normalization=policy.length_normalization,
        reward_scale=policy.reward_scale,
        reward_clip=policy.reward_clip,
        whiten=policy.whiten_advantages,
    )


def policy_loss(terms: TokenTerms, experience: Experience, policy: Policy) -> RolloutLoss:
    """Return `rollout_loss` with a policy's switches."""
    return rollout_loss(
        terms,
        experience,
        clip_range=policy.clip_range,
        clip_importance=policy.clip_importance,
        single_step=policy.single_step,
        weight_single_step=policy.weight_single_step,
    )
