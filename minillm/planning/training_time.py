"""Times of training steps: micro-batches of every kind of training, on copies of the models in engines of their own."""

import copy
import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from minillm.config import Top
from minillm.models.batches import Limit
from minillm.models.lora import add_adapters
from minillm.models.output_head import HeadedModel, output_head
from minillm.models.passes import is_sharded
from minillm.objectives.sparse import SparseTeacher
from minillm.objectives.terms import Teacher
from minillm.planning.clock import agreed, timed
from minillm.planning.extrapolation import Effort, Size
from minillm.planning.micro_batches import MicroBatch, mean_longest, mean_micro_batch
from minillm.planning.work import forward_operations, trained_model
from minillm.stages.training import Train
from minillm.training.engine import make_engine, take_step
from minillm.training.feeds import Feed, Models
from minillm.training.fixed_text import FixedText, StoredTeacher
from minillm.training.on_policy import Rollouts
from minillm.training.pairs import Pairs
from minillm.training.round_teacher import PerToken, SilentTeacher
from minillm.training.rounds import Round, policy_experience
from minillm.worker.processes import world_size

if TYPE_CHECKING:
    from minillm.planning.timing import Measurement

ENGINE_BYTES = 20
"""Bytes of a model's copy in an engine and of the optimizer's state, per weight."""
CPU_WRITES, DEVICE_WRITES = 5e8, 2e10
"""Bytes per second at which an engine is expected to be made."""
UPDATES = 3
"""Optimizer steps timed with each engine; the first one makes the optimizer's state."""


class Trainings:
    """Trainings of a measurement; those whose engines are alike share one, and there is one at a time."""

    def __init__(self, measurement: "Measurement") -> None:
        self.measurement = measurement
        self.engine: Any = None
        self.engine_kind: tuple[Any, ...] = ()
        self.engine_seconds = 0.0
        self.update_seconds: list[float] = []

    def time_all(self) -> dict[str, Any]:
        """Time every training, those of one kind of engine after each other, the student's first."""
        trainings = self.measurement.settings.trainings.items()
        ordered = sorted(trainings, key=lambda item: str(self._engine_kind(item[1], trained_model(item[1]))))
        return {key: self._time_training(train) for key, train in ordered}

    def _time_training(self, train: Train) -> dict[str, Any]:
        """Time micro-batches and optimizer steps; the effort of a whole step is to be looked up on their line."""
        name, method = trained_model(train), train.method
        training, policy = method.training, method.policy
        lengths = self.measurement.rows if method.text == "dataset" else self.measurement.prompts
        limit = Limit.of(self.measurement.runtime)
        micro = mean_micro_batch(lengths, method.sequences, limit, world_size())
        step = self._micro_effort(train, micro.rows, micro.prompt, micro.response, micro.tokens).times(micro.count)
        if policy is not None and policy.plain_text_coefficient:
            blocks = (policy.plain_text_batch_size or training.batch_size) / world_size()
            block = forward_operations(self.measurement.facts[name], blocks, 1, train.max_tokens - 1)
            step += Effort(min(micro.count, blocks), (3 + training.gradient_checkpointing) * block)
        facts = {"step": asdict(step), "micro_batch": asdict(micro)}
        if policy is not None:
            at_once = min(self.measurement.runtime.generation_batch_size, -(-policy.rollouts // world_size()))
            facts |= {"rows": at_once, "longest": mean_longest(self.measurement.prompts.responses, at_once)}
        label = f"{name} trains ({method.divergence}{' on rollouts' * (policy is not None)})"
        if not self._engine_fits(train, name):
            self.measurement.say(f"{label}: not timed, as its engine would take too long to make")
            self.measurement.budget.share()
            line = self.measurement.untimed((name, training.precision))
            return facts | {"line": asdict(line), "update_seconds": 0.0, "engine_seconds": 0.0}
        return facts | self._time_steps(train, name, label, micro)

    def _micro_effort(self, train: Train, rows: float, prompt: float, response: float, tokens: float) -> Effort:
        """Forward and backward pass of a micro-batch, and the teacher's part of its loss."""
        facts = self.measurement.facts[trained_model(train)]
        passes = 3 + train.method.training.gradient_checkpointing  # the backward pass is two forward ones
        operations = passes * forward_operations(facts, rows, prompt, response, tokens)
        if train.method.divergence == "cross_entropy" or train.method.stored in ("top", "sampled"):
            return Effort(1, operations)
        teacher = self.measurement.facts.get("teacher")
        if teacher is None:  # it runs elsewhere
            return Effort(1, operations)
        if train.method.policy is None and train.method.stored is None:
            return Effort(1, operations + forward_operations(teacher, rows, prompt, response, tokens))
        return Effort(1, operations + 2 * teacher.width * teacher.tokenizer_entries * rows * tokens)

    def _time_steps(self, train: Train, name: str, label: str, micro: MicroBatch) -> dict[str, Any]:
        precision = train.method.training.precision
        self._make_engine(train, name)
        read = train.method.needs_log_probs and train.method.stored not in ("top", "sampled")
        read = read and "teacher" in self.measurement.facts
        teacher = self.measurement.model("teacher", precision) if read else None
        models = Models(self.engine, teacher, self.measurement.shared.entries, ())

        def one_micro_batch(size: Size) -> float:
            feed = self._feed(train, models, size)
            updating = len(self.update_seconds) < UPDATES
            self.engine.set_gradient_accumulation_boundary(updating)
            self.engine.train()

            def backward(size: Size) -> None:
                (compute,) = feed.losses(0, Limit())
                self.engine.backward(compute()["loss"])

            seconds = timed(backward)(size)
            if updating:
                self.update_seconds.append(timed(lambda _: take_step(self.engine))(size))
            return seconds

        def effort(size: Size) -> Effort:
            return self._micro_effort(train, size.rows, size.prompt, size.response, size.response)

        real = Size(round(micro.rows), round(micro.prompt), round(micro.response))
        line = self.measurement.line(label, real, effort, one_micro_batch, (name, precision))
        later = self.update_seconds[1:] or self.update_seconds
        update = statistics.fmean(later) if later else 0.0
        return {"line": asdict(line), "update_seconds": update, "engine_seconds": self.engine_seconds}

    def _engine_fits(self, train: Train, name: str) -> bool:
        if self._engine_kind(train, name) == self.engine_kind:
            return True
        if is_sharded(self.measurement.models[name]):
            return False  # a part of a teacher cannot be copied into an engine
        writes = DEVICE_WRITES if torch.cuda.is_available() else CPU_WRITES
        return (
            ENGINE_BYTES * self.measurement.facts[name].parameters / writes < agreed(self.measurement.budget.left) / 2
        )

    def _engine_kind(self, train: Train, name: str) -> tuple[Any, ...]:
        training = train.method.training
        return (name, training.precision, training.lora, training.gradient_checkpointing)

    def _make_engine(self, train: Train, name: str) -> None:
        """Put a copy of a model into an engine, unless the one at hand is alike."""
        kind, training = self._engine_kind(train, name), train.method.training
        if kind == self.engine_kind:
            return
        began = time.monotonic()
        self.engine, self.engine_kind, self.update_seconds = None, kind, []
        gc.collect()  # engines hold themselves
        model = copy.deepcopy(self.measurement.model(name, training.precision)).requires_grad_(True)
        if training.lora is not None:
            add_adapters(model, training.lora)
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        headed = HeadedModel(model, self.measurement.shared.entries)
        self.engine = make_engine(headed, training, 10**6, self.measurement.runtime)
        self.engine_seconds = time.monotonic() - began

    def _feed(self, train: Train, models: Models, size: Size) -> Feed:
        """A feed whose mini-batch has one micro-batch of the size on each process."""
        method, rows = train.method, size.rows * world_size()
        once = method.training.model_copy(update={"batch_size": rows})
        method = method.model_copy(update={"training": once})
        if method.text == "pairs":
            pairs = self._examples(max(world_size(), rows // 2), size)
            once = method.training.model_copy(update={"batch_size": len(pairs)})
            method = method.model_copy(update={"training": once})
            return Pairs(models, method, pairs.assign(rejected_ids=pairs["response_ids"]), train.seed)
        if method.policy is None:
            return FixedText(models, method, self._examples(rows, size), train.seed, self._stored(models, train, size))
        policy = method.policy.model_copy(update={"rollouts": rows, "inner_epochs": 1})
        feed = Rollouts(
            models,
            policy,
            method,
            self._examples(rows, size),
            None,
            size.prompt + size.response,
            self.measurement.runtime,
            train.seed,
            SilentTeacher() if models.teacher is None else None,
        )
        feed.round = self._sampled_round(train, models, size, rows)
        return feed

    def _stored(self, models: Models, train: Train, size: Size) -> StoredTeacher | None:
        """A teacher as if it had left its knowledge: every entry that is kept of it is equally likely."""
        form, vocabulary = train.method.stored, self.measurement.shared.entries
        if form is None:
            return None

        def teacher(rows: Sequence[int], device: torch.device) -> Teacher | SparseTeacher:
            tokens = len(rows) * size.response
            if form == "hidden":
                assert models.teacher is not None
                width = self.measurement.facts["teacher"].width
                hidden = torch.zeros(tokens, width, dtype=models.teacher.dtype, device=device)  # (N, H)
                return Teacher(hidden, output_head(models.teacher, vocabulary))
            kept = Top().entries(vocabulary)
            entries = torch.arange(kept, device=device).expand(tokens, kept)  # (N, K)
            even, none = torch.full(entries.shape, 1 / kept, device=device), torch.zeros(tokens, device=device)
            return SparseTeacher(entries, even > 0, even, none, none, none)

        return teacher

    def _sampled_round(self, train: Train, models: Models, size: Size, rows: int) -> Round:
        """A round as if it had been sampled and scored: both models find every token equally likely."""
        assert train.method.policy is not None
        prompts, responses = [self.measurement.text(size.prompt)] * rows, [self.measurement.text(size.response)] * rows
        even = torch.full((rows, size.response), -float(np.log(self.measurement.shared.entries)))  # (B, T)
        kept: PerToken = ()
        if models.teacher is not None:
            width, dtype = self.measurement.facts["teacher"].width, models.teacher.dtype
            kept = (torch.zeros(size.response, width, dtype=dtype), -even[0])  # (T, H), (T,)
        experience = policy_experience(even, even.clone(), responses, train.method.policy)
        return Round(0, prompts, responses, experience, {row: kept for row in range(rows)})

    def _examples(self, rows: int, size: Size) -> pd.DataFrame:
        prompts, responses = [self.measurement.text(size.prompt)] * rows, [self.measurement.text(size.response)] * rows
        turns = [[{"start": 0, "end": size.response}]] * rows
        return pd.DataFrame({"row": range(rows), "prompt_ids": prompts, "response_ids": responses, "turns": turns})
