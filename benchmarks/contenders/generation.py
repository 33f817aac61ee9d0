"""Generation of a benchmark's responses by our engine or by transformers' `generate`, with given lengths.

Random models do not end where real responses end, so each response is given the length of a real one, on both sides.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.contenders.models import clock, peak, random_model
from benchmarks.protocol import serve


class AtLength(StoppingCriteria):
    """Criterion that ends each row at a length of its own."""

    def __init__(self, lengths: Tensor, prompt_width: int) -> None:
        self.until = prompt_width + lengths

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Return which rows have ended (rows,), bool."""
        return input_ids.shape[1] >= self.until


def make_step(settings: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """Return the step, which generates all responses."""
    lengths: list[list[int]] = json.loads(Path(settings["lengths"]).read_text(encoding="utf-8"))
    generator = torch.Generator().manual_seed(0)
    vocabulary, rows = settings["vocabulary"], settings["batch_size"]
    tokens = [torch.randint(1, vocabulary, (prompt,), generator=generator).tolist() for prompt, _ in lengths]
    positions = max(prompt for prompt, _ in lengths) + max(response for _, response in lengths)
    device = settings.get("device", "cpu")
    model: Any = random_model(settings["student"], vocabulary, positions, 0, settings["dtype"], device)

    def with_engine() -> dict[str, float]:
        from minillm.generation.sampling import Sampler
        from minillm.generation.slots import Request

        requests = [
            Request(t, response, (i,)) for i, (t, (_, response)) in enumerate(zip(tokens, lengths, strict=True))
        ]
        responses = Sampler(model, (), vocabulary, batch_size=rows).sample(requests)
        return {"tokens": sum(len(r.tokens) for r in responses), **peak(device)}

    @torch.no_grad()
    def with_generate() -> dict[str, float]:
        made = 0
        for start in range(0, len(tokens), rows):
            part, ends = tokens[start : start + rows], [response for _, response in lengths[start : start + rows]]
            width = max(map(len, part))
            padded = torch.tensor([[0] * (width - len(t)) + t for t in part], device=device)
            mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in part], device=device)
            model.generate(
                padded,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=max(ends),
                stopping_criteria=StoppingCriteriaList([AtLength(torch.tensor(ends, device=device), width)]),
            )
            made += sum(ends)
        clock(device)
        return {"tokens": made, **peak(device)}

    return {"engine": with_engine, "generate": with_generate}[settings["by"]]


if __name__ == "__main__":
    serve(make_step)
