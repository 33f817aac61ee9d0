"""The reference code's procedure, written plainly with `generate` and full forward passes (docs/method.md §4).

One batch of rollouts there costs two generations, one of them only to log, and seven full forward passes, two of them
identical; then the inner epochs. The teacher's logits are kept from one of the seven, which is kinder than running the
teacher at every inner step.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from benchmarks.contenders.models import prompts, student_and_teacher
from benchmarks.protocol import serve


class MixIn(LogitsProcessor):
    """Mixes the teacher's probabilities, computed with its own cache, into the student's at every token."""

    def __init__(self, teacher: PreTrainedModel, alpha: float) -> None:
        self.teacher, self.alpha = teacher, alpha
        self.cache = DynamicCache(config=teacher.config)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the log of the mixture."""
        seen = self.cache.get_seq_length()
        output = self.teacher(input_ids[:, seen:], past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        mixed = self.alpha * output.logits[:, -1].softmax(dim=-1) + (1 - self.alpha) * scores.softmax(dim=-1)
        return mixed.log()


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step: one batch of rollouts and its inner epochs."""
    student: Any
    student, teacher = student_and_teacher(settings)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    prompt = torch.tensor(prompts(settings))
    width, alpha = settings["prompt_tokens"], settings["teacher_mix"]
    sampling = {"do_sample": True, "top_k": 0, "max_new_tokens": settings["new_tokens"], "min_new_tokens": None}

    def logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
        return model(tokens, use_cache=False).logits[:, width - 1 : -1]

    def log_prob(of: Tensor, tokens: Tensor) -> Tensor:
        return torch.log_softmax(of, dim=-1).gather(-1, tokens[:, width:, None]).squeeze(-1)

    def step() -> dict[str, float]:
        student.eval()
        with torch.no_grad():
            mask = torch.ones_like(prompt)
            tokens = student.generate(prompt, attention_mask=mask, logits_processor=[MixIn(teacher, alpha)], **sampling)
            student.generate(prompt, attention_mask=mask, **sampling)
            for model in (student, student, student, teacher, teacher):
                log_prob(logits(model, tokens), tokens)
            teacher_logits = logits(teacher, tokens)
            old, of_teacher = log_prob(logits(student, tokens), tokens), log_prob(teacher_logits, tokens)
            weight = (
                old - torch.logaddexp(old + torch.tensor(1 - alpha).log(), of_teacher + torch.tensor(alpha).log())
            ).exp()
            reward = of_teacher - old
            advantage = weight * (reward.flip(1).cumsum(1).flip(1) - reward)
            teacher_log = torch.log_softmax(teacher_logits, dim=-1)
        for _ in range(settings["inner_epochs"]):
            student_log = torch.log_softmax(logits(student, tokens), dim=-1)
            new = student_log.gather(-1, tokens[:, width:, None]).squeeze(-1)
            ratio = (new - old).exp()
            long_term = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            single_step = weight * (student_log.exp() * (student_log - teacher_log)).sum(dim=-1)
            (single_step + long_term).mean().backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return {}

    return step


if __name__ == "__main__":
    serve(make_step)
