"""A round of rollouts, and the mathematics on it with the switches of a configured policy."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minillm.config import Policy
from minillm.objectives.experience import Experience, make_experience
from minillm.objectives.losses import RolloutLoss, rollout_loss
from minillm.objectives.terms import TokenTerms


@dataclass
class Round:
    """One round of rollouts and the values computed from it once."""

    index: int
    prompts: list[list[int]]
    responses: list[list[int]]
    experience: Experience
    teacher: dict[int, tuple[Tensor, ...]]
    """The teacher's last hidden states (T, H) and log Σ exp of its logits (T,) by response, so that it runs once per
    round, not per epoch. Only of the responses that this process updates on: they are much larger than all else here.
    """

    def metrics(self, ends: tuple[int, ...]) -> dict[str, float]:
        """Return means per token (reward, weight) and per response (length, share with an end token) for the log."""
        experience, count = self.experience, len(self.responses)
        tokens = experience.mask.sum()  # ()
        reward = (experience.teacher_log_prob - experience.student_log_prob) * experience.mask  # (N, T)
        return {
            "reward": float(reward.sum() / tokens),
            "importance_weight": float(experience.importance_weight.sum() / tokens),
            "response_tokens": float(tokens / count),
            "finished": sum(response[-1] in ends for response in self.responses) / count,
        }


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
