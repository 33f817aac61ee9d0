"""The update phase alone (forward, losses through the head, backward, optimizer), against the rate of products."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders.models import clock, machine_rate, prompts, student_and_teacher
from benchmarks.protocol import serve
from minillm.models.batches import make_batch
from minillm.models.output_head import output_head, response_hidden
from minillm.objectives.divergences import reverse_kl
from minillm.objectives.terms import Teacher
from minillm.objectives.vocabulary import head_loss, token_log_probs


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step: one update on given responses. It reports its useful operations per second and the machine's."""
    student, teacher = student_and_teacher(settings)
    vocabulary = settings["vocabulary"]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    generator = torch.Generator().manual_seed(1)
    shape = settings["batch_size"], settings["new_tokens"]
    responses = torch.randint(1, vocabulary, shape, generator=generator).tolist()
    batch = make_batch(prompts(settings), responses)
    tokens = batch.response[batch.response_mask]
    with torch.no_grad():
        hidden, head = response_hidden(teacher, batch), output_head(teacher, vocabulary)
        compared = Teacher(hidden, head, token_log_probs(hidden, head, tokens)[1])
    body = sum(
        p.numel() for name, p in student.named_parameters() if p.dim() > 1 and "wte" not in name and "wpe" not in name
    )
    # A product and its two gradients for every weight; for the teacher's head, the product alone.
    through_head = 3 * settings["student"][0] + settings["teacher"][0]
    useful = 6 * body * batch.tokens.numel() + 2 * through_head * vocabulary * len(tokens)

    def step() -> dict[str, float]:
        before = clock("cpu")
        loss, _ = head_loss(
            response_hidden(student, batch),
            output_head(student, vocabulary),
            tokens,
            lambda terms, part: terms.divergence - terms.log_prob,
            reverse_kl,
            compared,
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds, rate = clock("cpu") - before, machine_rate(settings["dtype"], "cpu")
        return {"update_rate": useful / seconds, "machine_rate": rate, "share": useful / seconds / rate}

    return step


if __name__ == "__main__":
    serve(make_step)
