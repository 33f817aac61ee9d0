"""Validation of a model in training, and the choice of the weights that are kept (paper Algorithm 1)."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import torch.distributed as dist

from minillm.config import Metric, Runtime
from minillm.durable import move, sync, sync_tree
from minillm.errors import StageError
from minillm.files import write_json
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.metrics.by_name import METRICS_BY_NAME
from minillm.models.batches import Limit, lengths_of, make_batch, micro_batches
from minillm.models.causal_lm import save_model
from minillm.models.shared_tokenizer import SharedTokenizer
from minillm.objectives.vocabulary import token_log_probs
from minillm.streams import Purpose, stream
from minillm.training.engine import generating_weights, weights_to_save
from minillm.training.feeds import Models
from minillm.worker.processes import gather_lists, rank, world_size


@dataclass(frozen=True)
class Validation:
    """Validation loss and score on held-out rows of D."""

    models: Models
    tokenizer: SharedTokenizer
    examples: pd.DataFrame
    """Prompts with their responses, as `minillm.data.learnt_turns.prompts_of` returns them."""
    max_tokens: int
    runtime: Runtime

    def measure(self, select_by: Metric | Literal["validation_loss"]) -> dict[str, float]:
        """Return valid/loss (nats per response token) and, if a metric selects, valid/METRIC (0–100)."""
        self.models.student.eval()
        metrics = {"valid/loss": self._loss()}
        if select_by != "validation_loss":
            metrics[f"valid/{select_by}"] = self._score(METRICS_BY_NAME[select_by].compare)
        return metrics

    @torch.no_grad()
    def _loss(self) -> float:
        total = torch.zeros(2, dtype=torch.float64)  # (2,): sum of −log q, number of tokens
        lengths = lengths_of(self.examples["prompt_ids"], self.examples["response_ids"])
        # Every process makes the same number of forward passes, which ZeRO-3 needs, some perhaps for nothing.
        for rows in micro_batches(range(len(lengths)), lengths, Limit.of(self.runtime)):
            counted = self.examples.iloc[rows or [0]]
            batch = make_batch(counted["prompt_ids"].tolist(), counted["response_ids"].tolist())
            batch = batch.to(self.models.student.device)
            tokens = batch.response[batch.response_mask]  # (N,)
            log_prob = self.models.student(
                batch, lambda hidden, head, tokens=tokens: {"log_prob": token_log_probs(hidden, head, tokens)[0]}
            )["log_prob"]
            if rows:
                total += torch.tensor([-float(log_prob.sum()), len(tokens)])
        device = self.models.student.device
        total = total.to(device)
        dist.all_reduce(total)
        return float(total[0] / total[1])

    def _score(self, metric: Callable[[str, Sequence[str]], float]) -> float:
        # The same random numbers for every model, whatever seed it was trained with.
        requests = [
            Request(prompt, self.max_tokens - len(prompt), stream(Purpose.VALIDATION_RESPONSES, 0, *place))
            for prompt, place in zip(self.examples["prompt_ids"], self.examples["place"], strict=True)
        ]
        with generating_weights(self.models.student, self.runtime) as student:
            sampler = Sampler(
                student, self.models.ends, self.models.vocabulary, batch_size=self.runtime.generation_batch_size
            )
            responses = gather_lists([r.tokens for r in sampler.sample(requests[rank() :: world_size()])])
        texts = self.tokenizer.texts(responses)
        scores = [metric(text, [gold]) for text, gold in zip(texts, self.examples["response"], strict=True)]
        return 100 * sum(scores) / len(scores)


@dataclass
class Selection:
    """Keeps the weights of the best validated step, and the history of validations."""

    directory: Path
    """Work folder; each kept model has a folder of its own in it until no checkpoint needs it."""
    select_by: str
    history: list[dict[str, float]] = field(default_factory=list)
    until: float = math.inf
    """Last step whose weights may be selected."""

    @property
    def best(self) -> dict[str, float]:
        """The best validation so far: by the metric, among equal ones by the loss, then the earliest.

        Raises:
            StageError: None has a number.
        """
        if not self._sound:
            raise StageError(
                f"none of the {len(self.history)} validations has a finite {self._name} and loss, so that no weights "
                "can be selected: lower training.learning_rate, train in float32, or look at the validation rows"
            )
        return min(self._sound, key=lambda record: (self._rank(record), record["valid/loss"], record["step"]))

    @property
    def equal(self) -> list[dict[str, float]]:
        """Other validations with the same value of the metric as the best one."""
        best = self.best
        return [record for record in self._sound if record is not best and self._rank(record) == self._rank(best)]

    def remark(self) -> str:
        """Return a remark on the latest validation for the log, or an empty string if its figures suffice."""
        latest = self.history[-1]
        names = dict.fromkeys([self._name, "valid/loss"])
        if not all(math.isfinite(latest[name]) for name in names):
            figures = ", ".join(f"{name} is {latest[name]}" for name in names)
            return f"step {latest['step']}: {figures}; such weights are not selected"
        if not self.equal or self._rank(latest) != self._rank(self.best):
            return ""
        return (
            f"step {latest['step']}: {self._name} {latest[self._name]:.4g} is the best so far and not alone; the "
            f"weights of step {self.best['step']} are kept, for the lower loss or else for being the earliest"
        )

    def consider(self, step: int, metrics: dict[str, float], engine: Any, tokenizer: SharedTokenizer) -> None:
        """Record a validation and save the weights if it is the best so far."""
        self.history.append({"step": step, **metrics})
        if rank() == 0 and (words := self.remark()):
            print(words, flush=True)
        if not self._sound or self.best["step"] != step:
            return
        weights = weights_to_save(engine)
        if rank() == 0:
            shutil.rmtree(self._folder(step), ignore_errors=True)
            save_model(engine.module.model, tokenizer, self._folder(step), weights)
            sync_tree(self._folder(step))  # before a checkpoint counts on them
            sync(self.directory)
        dist.barrier()

    def forget_others(self, safe_step: float) -> None:
        """Remove models that will not be selected; call only after a checkpoint has recorded the best.

        Args:
            safe_step: The best up to this step is kept, too: a collapse of the training may yet discredit later ones.
        """
        views = [view for view in (self, replace(self, until=safe_step)) if view._sound]
        kept = [self._folder(int(view.best["step"])) for view in views]
        for folder in self.directory.glob("best-*") if kept else ():
            if folder not in kept:
                shutil.rmtree(folder)

    def keep_until(self, until: float, why: str) -> None:
        """Select among the validations up to a step from here on.

        Raises:
            StageError: There is none.
        """
        self.until = until
        if not self._sound:
            raise StageError(
                f"{why}, but none had been validated: lower training.learning_rate, validate sooner "
                "(training.evaluate_every), or set policy.collapse.on_collapse to flag"
            )

    def finish(self, output: Path, collapse: str = "") -> None:
        """Move the selected weights to output/model and record how they were selected.

        Args:
            output: Folder of the result.
            collapse: Words on a collapse of the training.

        Raises:
            StageError: No validation has a number.
        """
        if not (output / "model").exists():
            move(self._folder(int(self.best["step"])), output / "model")
        record = {"select_by": self.select_by, "step": self.best["step"], "value": self.best[self._name]}
        record["equal"] = [of["step"] for of in self.equal]
        record |= {"collapse": collapse} if collapse else {}
        write_json(output / "selection.json", {**record, "history": self.history})

    @property
    def _name(self) -> str:
        return "valid/loss" if self.select_by == "validation_loss" else f"valid/{self.select_by}"

    @property
    def _sound(self) -> list[dict[str, float]]:
        """Validations up to `until` whose loss and score are finite; the others cannot be ranked."""
        allowed = (of for of in self.history if of["step"] <= self.until)
        return [of for of in allowed if math.isfinite(of[self._name]) and math.isfinite(of["valid/loss"])]

    def _rank(self, record: dict[str, float]) -> float:
        return record[self._name] * (1 if self._name == "valid/loss" else -1)

    def _folder(self, step: int) -> Path:
        return self.directory / f"best-{step:08d}"
