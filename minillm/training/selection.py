"""Validation of a model in training, and the choice of the weights that are kept (paper Algorithm 1)."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist

from minillm.artifacts import write_atomically
from minillm.evaluation.rouge import rouge_l
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.models.batches import make_batch
from minillm.models.causal_lm import save_model
from minillm.models.shared_tokenizer import SharedTokenizer
from minillm.objectives.vocabulary import token_log_probs
from minillm.processes import gather_lists, rank, world_size
from minillm.training.engine import whole_weights
from minillm.training.feeds import Models

VALIDATION_SEED = 7
"""Of the responses sampled for validation: the same for every model, whatever seed it was trained with."""


@dataclass(frozen=True)
class Validation:
    """Validation loss and Rouge-L on held-out rows of D."""

    models: Models
    tokenizer: SharedTokenizer
    examples: pd.DataFrame
    max_tokens: int
    micro_batch_size: int
    generation_batch_size: int

    def measure(self, with_rouge: bool) -> dict[str, float]:
        """valid/loss (nats per response token) and, if asked for, valid/rouge_l (0–100)."""
        self.models.student.eval()
        metrics = {"valid/loss": self._loss()}
        if with_rouge:
            metrics["valid/rouge_l"] = self._rouge_l()
        return metrics

    @torch.no_grad()
    def _loss(self) -> float:
        mine = self.examples.iloc[rank() :: world_size()]
        total = torch.zeros(2, dtype=torch.float64)
        # Every process makes the same number of forward passes, which ZeRO-3 needs.
        for start in range(0, -(-len(self.examples) // world_size()), self.micro_batch_size):
            part = mine.iloc[start : start + self.micro_batch_size]
            counted = part if len(part) else self.examples.iloc[:1]
            batch = make_batch(counted["prompt_ids"].tolist(), counted["response_ids"].tolist())
            batch = batch.to(self.models.student.device)
            tokens = batch.response[batch.response_mask]
            log_prob = self.models.student(
                batch, lambda hidden, head, tokens=tokens: {"log_prob": token_log_probs(hidden, head, tokens)[0]}
            )["log_prob"]
            if len(part):
                total += torch.tensor([-float(log_prob.sum()), len(tokens)])
        device = self.models.student.device
        total = total.to(device)
        dist.all_reduce(total)
        return float(total[0] / total[1])

    def _rouge_l(self) -> float:
        requests = [
            Request(prompt, self.max_tokens - len(prompt), (VALIDATION_SEED, int(row)))
            for prompt, row in zip(self.examples["prompt_ids"], self.examples["row"], strict=True)
        ]
        with whole_weights(self.models.student) as student:
            sampler = Sampler(student, self.models.ends, self.models.vocabulary, batch_size=self.generation_batch_size)
            responses = gather_lists([r.tokens for r in sampler.sample(requests[rank() :: world_size()])])
        texts = self.tokenizer.texts(responses)
        scores = [rouge_l(text, [gold]) for text, gold in zip(texts, self.examples["response"], strict=True)]
        return 100 * sum(scores) / len(scores)


@dataclass
class Selection:
    """Keeps the weights of the best validated step, and the history of validations."""

    directory: Path
    """Work folder; each kept model stands in a folder of its own until a checkpoint no longer needs it."""
    select_by: str
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def _name(self) -> str:
        return "valid/rouge_l" if self.select_by == "rouge_l" else "valid/loss"

    @property
    def best(self) -> dict[str, float]:
        """The best validation so far; the earlier one where two are equal."""
        sign = -1 if self.select_by == "rouge_l" else 1
        return min(self.history, key=lambda record: sign * record[self._name])

    def consider(self, step: int, metrics: dict[str, float], engine: Any, tokenizer: SharedTokenizer) -> None:
        """Record a validation and save the weights if it is the best so far."""
        self.history.append({"step": step, **metrics})
        if self.best["step"] != step:
            return
        with whole_weights(engine) as model:
            if rank() == 0:
                shutil.rmtree(self._folder(step), ignore_errors=True)
                save_model(model, tokenizer, self._folder(step))  # type: ignore[arg-type]
        dist.barrier()

    def forget_others(self) -> None:
        """Remove kept models that are the best no more; safe once a checkpoint knows of the best."""
        for folder in self.directory.glob("best-*"):
            if folder != self._folder(int(self.best["step"])):
                shutil.rmtree(folder)

    def finish(self, output: Path) -> None:
        """Move the selected weights to output/model and say how they were selected."""
        if not (output / "model").exists():
            self._folder(int(self.best["step"])).replace(output / "model")
        record = {"select_by": self.select_by, "step": self.best["step"], "value": self.best[self._name]}
        write_atomically(output / "selection.json", json.dumps({**record, "history": self.history}, indent=2))

    def _folder(self, step: int) -> Path:
        return self.directory / f"best-{step:08d}"
