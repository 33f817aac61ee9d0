"""The one trainer: any method, any size, one process or several, on the DeepSpeed engine (stage `train`)."""

import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from minillm.config import Collapse, Runtime
from minillm.data.learnt_turns import prompts_of
from minillm.data.plain_text import PlainText
from minillm.errors import STOPPED, StageError
from minillm.knowledge.store import Identity, KnowledgeStore, training_rows
from minillm.models.batches import Limit
from minillm.models.causal_lm import build_model, dtype_of, load_frozen, load_model, parameter_count
from minillm.models.lora import add_adapters
from minillm.models.output_head import HeadedModel
from minillm.models.shared_tokenizer import SharedTokenizer, load_shared_tokenizer
from minillm.stages.base import Job, Summary
from minillm.stages.served import SERVED
from minillm.stages.training import Train
from minillm.streams import Purpose, generator, stream, torch_seed
from minillm.training.checkpoints import Checkpoints
from minillm.training.collapse import COLLAPSED, CollapseWatch
from minillm.training.engine import in_turn, make_engine, take_step
from minillm.training.feeds import Feed, Models
from minillm.training.fixed_text import FixedText, StoredTeacher
from minillm.training.on_policy import Rollouts
from minillm.training.pairs import Pairs
from minillm.training.round_teacher import RoundTeacher
from minillm.training.selection import Selection, Validation
from minillm.worker.processes import process_group, rank
from minillm.worker.progress import Progress

LOG_SECONDS = 1.0
"""Training losses are averaged over at least this long before they are logged."""


@process_group()
def run(job: Job[Train]) -> Summary:
    """Train, select and save a model, continuing from the last checkpoint in the work folder."""
    trainer = make_trainer(job, job.settings)
    trainer.train()
    if rank() == 0:
        trainer.selection.finish(job.output, trainer.watch.words)
    best = trainer.selection.best
    told: Summary = {"collapse": trainer.watch.words} if trainer.watch.words else {}
    measured = {name.replace("valid/", "best/"): best[name] for name in best if name.startswith("valid/")}
    facts = {"best_step": best["step"], "equal_steps": float(len(trainer.selection.equal))}
    return {**facts, "parameters": parameter_count(trainer.engine.module), **measured, **told}


def make_trainer(job: Job[Train], settings: Train) -> "Trainer":
    """Return a trainer ready for its first step, with models, engine and data; call inside a process group."""
    training = settings.method.training
    shared = load_shared_tokenizer(job.inputs["tokenizer"])
    examples = _examples(job, settings)
    stored = _stored_teacher(job, settings, shared, examples)
    examples = examples.iloc[: settings.rows]
    total = training.optimizer_steps(len(examples))
    torch.manual_seed(torch_seed(stream(Purpose.ADAPTERS, settings.seed)))
    student = HeadedModel(_student(job, settings, shared), shared.entries)
    checkpoints = Checkpoints(job.work / "checkpoints")
    engine = make_engine(student, training, total, job.runtime, checkpoints.universal)
    torch.manual_seed(torch_seed(stream(Purpose.DROPOUT, settings.seed, rank())))
    elsewhere = _teacher_elsewhere(job, settings, shared)
    teacher = _teacher(job, settings) if elsewhere is None else None
    models = Models(engine, teacher, shared.entries, shared.ends)
    held_out = prompts_of(pd.read_parquet(job.inputs["examples"] / "validation.parquet"))
    if len(held_out) > settings.validation_prompts:
        chosen = generator(stream(Purpose.VALIDATION_PROMPTS, 0))
        held_out = held_out.sample(settings.validation_prompts, random_state=chosen)
    lengths = held_out["prompt_ids"].map(len) + held_out["response_ids"].map(len)
    held_out = held_out.iloc[lengths.argsort(kind="stable")]  # batches with little padding
    return Trainer(
        engine=engine,
        feed=_feed(job, settings, models, examples, stored, elsewhere),
        validation=Validation(models, shared, held_out, settings.max_tokens, job.runtime),
        selection=Selection(job.work, training.select_by),
        watch=CollapseWatch(Collapse() if settings.method.policy is None else settings.method.policy.collapse),
        checkpoints=checkpoints,
        progress=Progress(job.output, total, "steps"),
        settings=settings,
        runtime=job.runtime,
    )


def _examples(job: Job[Train], settings: Train) -> pd.DataFrame:
    """Return rows to learn in one pass each or, for rollouts, the prompt of each learnt answer."""
    rows = training_rows(job.inputs)
    if settings.method.text == "pairs":
        rejected = pd.read_parquet(job.inputs["rejected"] / "responses.parquet")
        return rows.assign(rejected_ids=rejected["response_ids"])
    return rows if settings.method.policy is None else prompts_of(rows)


def _student(job: Job[Train], settings: Train, shared: SharedTokenizer) -> PreTrainedModel:
    dtype = dtype_of(settings.method.training.precision)
    # On rollouts the policy ratio is one before the first update, so nothing is dropped out.
    dropout = settings.method.policy is None
    if settings.architecture is not None:
        model = build_model(settings.architecture, shared.tokenizer, settings.seed, dtype, dropout)
    else:
        model = load_model(job.inputs["weights"], dtype, dropout)
    if settings.method.training.lora is not None:
        add_adapters(model, settings.method.training.lora)
    if settings.method.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _teacher(job: Job[Train], settings: Train) -> PreTrainedModel | None:
    if not settings.method.runs_teacher:
        return None
    return load_frozen(job.inputs["teacher"], dtype_of(settings.method.training.precision), job.runtime)


def _teacher_elsewhere(job: Job[Train], settings: Train, shared: SharedTokenizer) -> RoundTeacher | None:
    """Connect to a teacher behind an endpoint; None if it runs here, or need not run."""
    if not settings.method.runs_teacher or not (job.inputs["teacher"] / SERVED).exists():
        return None
    from minillm.served.rounds import ServedRounds  # the package openai is an extra

    return ServedRounds(job.inputs["teacher"], job.runtime.store, shared)


def _stored_teacher(
    job: Job[Train], settings: Train, shared: SharedTokenizer, examples: pd.DataFrame
) -> StoredTeacher | None:
    """Open the store of the teacher's knowledge; its files are read for their digest alone, by one process."""
    if settings.method.stored is None:
        return None
    found = Identity.of(shared.tokenizer, job.inputs["teacher"], examples) if rank() == 0 else None
    return KnowledgeStore(job.inputs["knowledge"], settings.method.stored, found).of


def _feed(
    job: Job[Train],
    settings: Train,
    models: Models,
    examples: pd.DataFrame,
    stored: StoredTeacher | None,
    elsewhere: RoundTeacher | None,
) -> Feed:
    method, policy = settings.method, settings.method.policy
    if method.text == "pairs":
        return Pairs(models, method, examples, settings.seed)
    if policy is None:
        return FixedText(models, method, examples, settings.seed, stored)
    plain_text = PlainText(job.inputs["plain_text"], settings.max_tokens) if "plain_text" in job.inputs else None
    return Rollouts(
        models,
        policy,
        method,
        examples,
        plain_text,
        settings.max_tokens,
        job.runtime,
        settings.seed,
        elsewhere,
    )


@dataclass
class Trainer:
    """Steps through a feed: losses, checks, validation, checkpoints."""

    engine: Any
    feed: Feed
    validation: Validation
    selection: Selection
    watch: CollapseWatch
    """Sees rounds of rollouts, and so nothing of fixed text."""
    checkpoints: Checkpoints
    progress: Progress
    settings: Train
    runtime: Runtime
    stop_asked: bool = field(default=False, init=False)

    def train(self) -> None:
        """Train to the last step, or to a collapse that ends it, from where the last checkpoint left off.

        Raises:
            StageError: A collapse ended it before any weights were validated, or a loss or gradient is not finite.
        """
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        start = self._resume()
        training = self.settings.method.training
        meter = Meter()
        for step in range(start, start if self.watch.stopped else self.progress.total):
            meter.add(self.step(step))
            done = step + 1
            last = done == self.progress.total
            metrics = meter.due(self.engine, last or self.watch.stopped)
            if last or done % training.evaluate_every == 0:
                measured = self.validation.measure(training.select_by)
                self.feed.validated(measured["valid/loss"])
                self.selection.consider(done, measured, self.engine, self.validation.tokenizer)
                metrics |= measured
            if metrics:
                self.progress.log(done, metrics)
            stopping = self._agree_to_stop()
            if stopping or last or self.watch.stopped or done % self.runtime.checkpoint_every == 0:
                self.checkpoint(done)
            if self.watch.stopped:
                break
            if stopping and not last:
                print(f"stopped after step {done}; the next attempt continues from there", flush=True)
                sys.exit(STOPPED)
        if self.watch.stopped:
            self.selection.keep_until(self.watch.safe_step, f"{self.settings.role}: {self.watch.words}")

    def step(self, step: int) -> dict[str, float]:
        """Take one optimizer step on the global mini-batch; return its mean losses over all processes."""
        limit = Limit.of(self.runtime)
        prepared = self.feed.prepare(step, limit)
        if prepared and self.watch.see(step, prepared) and rank() == 0:
            print(self.watch.words, flush=True)
        self.engine.train()
        sums: dict[str, torch.Tensor] = {}
        for losses in in_turn(self.engine, self.feed.losses(step, limit)):
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value.detach())) + value.detach()
            self._refuse_non_finite(losses["loss"], step, "loss")
            # DeepSpeed averages over processes; the feed's losses are shares of one sum.
            self.engine.backward(losses["loss"] * dist.get_world_size())
        norm = take_step(self.engine)
        self._refuse_non_finite(torch.tensor(norm), step, "gradient")
        packed = torch.stack([value.double() for value in sums.values()])  # (losses,): one message for all of them
        dist.all_reduce(packed)
        means = dict(zip(sums, packed.tolist(), strict=True))
        # The loss, then figures of the round, which the table of a running flow has room for.
        means = {"loss": means["loss"], **prepared, **means, "gradient_norm": norm}
        collapsed = {COLLAPSED: float(self.watch.first_bad)} if self.watch.first_bad else {}
        return {f"train/{name}": value for name, value in means.items()} | collapsed

    def _refuse_non_finite(self, value: torch.Tensor, step: int, what: str) -> None:
        finite = torch.isfinite(value.detach()).float().to(self.engine.device)
        dist.all_reduce(finite, dist.ReduceOp.MIN)
        if not finite:
            raise StageError(
                f"{self.settings.role}: the {what} is not finite at step {step + 1}, on {self.feed.describe(step)}; "
                "the last checkpoint is intact. Lower training.learning_rate, lengthen warmup_steps, or look at "
                "those rows"
            )

    def _resume(self) -> int:
        found = self.checkpoints.load(self.engine)
        if found is None:
            return 0
        step, feed_states, selection = found
        self.feed.restore(feed_states)
        self.selection.history = selection["history"]
        self.watch.restore(selection["collapse"])
        print(f"continuing from the checkpoint of step {step}", flush=True)
        return step

    def checkpoint(self, step: int) -> None:
        """Write a checkpoint and remove models that no checkpoint needs any more."""
        selection = {"history": self.selection.history, "collapse": self.watch.state()}
        self.checkpoints.save(self.engine, step, self.feed.state(), selection)
        if rank() == 0 and self.selection.history:
            self.selection.forget_others(self.watch.safe_step)
        dist.barrier()

    def _ask_to_stop(self, *_: object) -> None:
        self.stop_asked = True

    def _agree_to_stop(self) -> bool:
        """Return True on every process if any of them was asked to stop: all must leave at the same step."""
        asked = torch.tensor(float(self.stop_asked), device=self.engine.device)
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        return bool(asked)


class Meter:
    """Averages training metrics between the lines of the log, each over the steps that had it."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._steps = 0
        self._since = time.monotonic()

    def add(self, metrics: dict[str, float]) -> None:
        """Add the metrics of a step."""
        self._steps += 1
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(value)

    def due(self, engine: Any, now: bool) -> dict[str, float]:
        """Return the means since the last call that returned any, if that is long enough ago or `now`; else nothing."""
        elapsed = time.monotonic() - self._since
        if not now and elapsed < LOG_SECONDS:
            return {}
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        means["train/learning_rate"] = engine.get_lr()[0]
        means["train/seconds_per_step"] = elapsed / self._steps
        self._values, self._steps, self._since = {}, 0, time.monotonic()
        return means
