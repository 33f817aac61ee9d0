"""Training on rollouts of the student mixed with its teacher: MiniLLM and its special cases (paper Algorithm 1)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minillm.config import Method, Policy
from minillm.data.plain_text import PlainText
from minillm.errors import StageError
from minillm.generation.sampling import Request, Sampler
from minillm.models.batches import make_batch
from minillm.models.causal_lm import response_logits
from minillm.objectives.divergences import fixed_text_loss
from minillm.objectives.losses import rollout_loss
from minillm.objectives.rollouts import Experience, make_experience, score_rollouts
from minillm.processes import gather_lists, rank, world_size
from minillm.training.engine import whole_weights
from minillm.training.feeds import Losses, Models, micro_batches, take, teacher_logits


@dataclass
class Round:
    """One round of rollouts and what was computed of it once."""

    index: int
    prompts: list[list[int]]
    responses: list[list[int]]
    experience: Experience


@dataclass
class Rollouts:
    """Responses sampled from p̃ during training, several inner epochs over each round (Algorithm 1)."""

    models: Models
    policy: Policy
    method: Method
    examples: pd.DataFrame
    plain_text: PlainText | None
    max_tokens: int
    """Longest prompt with response, tokens."""
    generation_batch_size: int
    scoring_batch_size: int
    seed: int
    round: Round | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        size = self.policy.plain_text_batch_size or 0
        if size % world_size():
            raise StageError(
                f"policy.plain_text_batch_size {size} cannot be divided among {world_size()} processes; "
                "choose a multiple, or another number in runtime.processes"
            )

    def prepare(self, step: int) -> dict[str, float]:
        """Sample the round that the step belongs to, unless it is at hand."""
        index = step // self._steps_per_round()
        if self.round is not None and self.round.index == index:
            return {}
        self.round = self._sample(index)
        return _round_metrics(self.round, self.models.eos)

    def losses(self, step: int, micro_batch_size: int) -> Iterator[Losses]:
        """Single-step and long-term terms as means per response token, L_PT as mean per plain-text token."""
        assert self.round is not None
        rows = self._rows(step)
        tokens = sum(len(self.round.responses[i]) for i in rows)
        lengths = [len(self.round.prompts[i]) + len(self.round.responses[i]) for i in rows]
        micros = list(micro_batches(rows, lengths, micro_batch_size))
        blocks = self._blocks(step)
        shares = np.array_split(np.array(blocks[rank() :: world_size()], dtype=int), len(micros))
        for chosen, share in zip(micros, shares, strict=True):
            losses = self._rollout_losses(chosen, tokens)
            if self.plain_text is not None and len(share):
                losses["plain_text"] = self._plain_text_loss(self.plain_text, share.tolist(), len(blocks))
                losses["loss"] = losses["loss"] + self.policy.plain_text_coefficient * losses["plain_text"]
            yield losses

    def _rollout_losses(self, rows: list[int], tokens: int) -> Losses:
        assert self.round is not None
        models = self.models
        prompts, responses = ([source[i] for i in rows] for source in (self.round.prompts, self.round.responses))
        batch = make_batch(prompts, responses).to(models.student.device)
        terms = rollout_loss(
            response_logits(models.student, batch, models.vocabulary),
            teacher_logits(models, batch),
            batch.response,
            self.round.experience.rows(rows, batch.response.shape[1], batch.tokens.device),
            self.policy,
            "forward_kl" if self.method.divergence == "forward_kl" else "reverse_kl",
        )

        def mean(values: Tensor) -> Tensor:
            return (values * batch.response_mask).sum() / tokens

        single_step, long_term = mean(terms.single_step), mean(terms.long_term)
        clipped = (terms.policy_ratio - 1).abs() > self.policy.clip_range
        return {
            "loss": single_step + long_term,
            "single_step": single_step.detach(),
            "long_term": long_term.detach(),
            self.method.divergence: mean(terms.divergence),
            "clipped_share": mean(clipped.float()),
        }

    def _plain_text_loss(self, plain_text: PlainText, blocks: list[int], total: int) -> Tensor:
        texts = [plain_text.block(i).tolist() for i in blocks]
        batch = make_batch([t[:1] for t in texts], [t[1:] for t in texts]).to(self.models.student.device)
        kd = self.policy.plain_text_kd
        per_token = fixed_text_loss(
            response_logits(self.models.student, batch, self.models.vocabulary),
            batch.response,
            teacher_logits(self.models, batch) if kd else None,
            "forward_kl" if kd else None,
            kd,
        )
        return per_token.sum() / (total * per_token.shape[1])

    def _sample(self, index: int) -> Round:
        """Sample a round, divided among the processes, and score it under both models."""
        policy, models = self.policy, self.models
        assert models.teacher is not None
        prompt_rows = take(len(self.examples), self.seed, index * policy.rollouts, policy.rollouts)
        prompts = [[int(t) for t in p] for p in self.examples["prompt_ids"].iloc[prompt_rows]]
        requests = [
            Request(prompt, self.max_tokens - len(prompt), (self.seed, index, number))
            for number, prompt in enumerate(prompts)
        ]
        mine = requests[rank() :: world_size()]
        models.student.eval()
        with whole_weights(models.student) as student:
            sampled = self._sampler(student).sample(mine)
            responses = [r.tokens for r in sampled]
            scores = score_rollouts(
                student,
                models.teacher,
                [list(r.prompt) for r in mine],
                responses,
                models.vocabulary,
                policy.temperature,
                self.scoring_batch_size,
            )
        rows = [
            (tokens, student_score[: len(tokens)].tolist(), teacher_score[: len(tokens)].tolist())
            for tokens, student_score, teacher_score in zip(responses, *scores, strict=True)
        ]
        responses, student_scores, teacher_scores = map(list, zip(*gather_lists(rows), strict=True))
        experience = make_experience(_pad(student_scores), _pad(teacher_scores), responses, policy)
        return Round(index, prompts, responses, experience)

    def _sampler(self, student: PreTrainedModel) -> Sampler:
        """A sampler of p̃; with α = 0 the teacher is not run."""
        policy, models = self.policy, self.models
        mixture = [(student, 1 - policy.teacher_mix)]
        if policy.teacher_mix > 0 and models.teacher is not None:
            mixture.append((models.teacher, policy.teacher_mix))
        return Sampler(
            mixture, models.eos, models.vocabulary, policy.temperature, batch_size=self.generation_batch_size
        )

    def _steps_per_round(self) -> int:
        return self.policy.inner_epochs * self.policy.rollouts // self.method.training.batch_size

    def _rows(self, step: int) -> list[int]:
        """Rows of the current round; each inner epoch has an order of its own."""
        size = self.method.training.batch_size
        round_index, step_in_round = divmod(step, self._steps_per_round())
        orders = np.random.default_rng([self.seed, round_index, 1])
        order = np.concatenate([orders.permutation(self.policy.rollouts) for _ in range(self.policy.inner_epochs)])
        return [int(i) for i in order[step_in_round * size : (step_in_round + 1) * size]]

    def _blocks(self, step: int) -> list[int]:
        """Plain-text blocks of the step; none where L_PT has no weight."""
        if self.plain_text is None or self.policy.plain_text_coefficient == 0:
            return []
        size = self.policy.plain_text_batch_size or self.method.training.batch_size
        return take(len(self.plain_text), self.seed, step * size, size)

    def describe(self, step: int) -> str:
        """The round and the rollouts in it."""
        return f"round {step // self._steps_per_round()}, rollouts {self._rows(step)}"

    def state(self) -> dict[str, Any]:
        """The current round: the student that sampled it exists no more."""
        if self.round is None:
            return {}
        return {
            "index": self.round.index,
            "prompts": self.round.prompts,
            "responses": self.round.responses,
            "student_log_prob": self.round.experience.student_log_prob,
            "teacher_log_prob": self.round.experience.teacher_log_prob,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back the round."""
        if state:
            experience = make_experience(
                state["student_log_prob"], state["teacher_log_prob"], state["responses"], self.policy
            )
            self.round = Round(state["index"], state["prompts"], state["responses"], experience)


def _pad(rows: list[list[float]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def _round_metrics(sampled: Round, eos: int) -> dict[str, float]:
    """Means per token of the round: reward, weight; and per response: length, share that ended by itself."""
    experience, count = sampled.experience, len(sampled.responses)
    tokens = experience.mask.sum()
    reward = (experience.teacher_log_prob - experience.student_log_prob) * experience.mask
    return {
        "reward": float(reward.sum() / tokens),
        "importance_weight": float(experience.importance_weight.sum() / tokens),
        "response_tokens": float(tokens / count),
        "finished": sum(response[-1] == eos for response in sampled.responses) / count,
    }
