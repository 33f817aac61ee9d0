"""Times of all that repeats in a run, from pieces that fit the time there is to measure (stage `speed`).

Each model is loaded once, generates and scores; copies of it are trained for a few micro-batches of every kind. The
weights of models that are not trained yet are random, and no response ends before its length.
"""

import copy
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from minillm.config import Sampling
from minillm.evaluation.likelihood import likelihoods
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.metrics.rouge import rouge_l
from minillm.models.causal_lm import DTYPES, build_model, load_model
from minillm.models.lora import add_adapters
from minillm.models.output_head import HeadedModel
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.objectives.experience import make_experience
from minillm.planning.extrapolation import UNTIMED, Budget, Effort, Line, Size, climb, fit
from minillm.planning.micro_batches import MicroBatch, mean_longest, mean_micro_batch
from minillm.planning.speed import SAID
from minillm.planning.stage_estimate import read_models
from minillm.planning.work import forward_operations, trained_model
from minillm.stages import Job, Speed, Train
from minillm.streams import Purpose, stream
from minillm.training.engine import make_engine, micro_batch_size, take_step
from minillm.training.feeds import Feed, Models
from minillm.training.fixed_text import FixedText
from minillm.training.on_policy import Rollouts, Round
from minillm.worker.processes import device, peak_bytes, process_group, rank, world_size

END_SECONDS = 4.0
"""Kept for what comes after the models: Rouge-L, the disk, and the end of the process."""
UPDATES = 2
"""Optimizer steps timed with each engine."""
ACCUMULATED = 1 << 20
"""Micro-batches that an engine would wait for by itself."""
ROUGE_SECONDS = 0.5
ROUGE_FEWEST = 40
DISK_BYTES = 32 << 20
ENGINE_BYTES = 20
"""Bytes of a model's copy in an engine and of the optimizer's state, per weight."""
CPU_WRITES, DEVICE_WRITES = 5e8, 2e10
"""Bytes per second at which an engine is expected to be made."""
CPU_READS, DEVICE_READS = 1e10, 1e12
"""Bytes of weights per second that a pass over one token is expected to read, before anything is timed."""
FEWEST_SECONDS = 15.0
"""Seconds to measure in, however long the imports of the worker took."""


def time_everything(job: Job, settings: Speed, seconds: float) -> dict[str, Any]:
    """Measure for at most so many seconds, and a little more if a model takes long to load."""
    with process_group():
        return Measurement(job, settings, seconds).run()


class Measurement:
    """One measurement: the models, the lengths of the data, and the time that is left."""

    def __init__(self, job: Job, settings: Speed, seconds: float) -> None:
        self.job, self.settings, self.runtime = job, settings, job.runtime
        self.shared = load_shared_tokenizer(job.inputs["tokenizer"])
        self.facts = read_models(job.inputs["tokenizer"])
        self.examples = pd.read_parquet(job.inputs["examples"] / "train.parquet")
        self.prompts, self.responses = (
            self.examples[column].map(len).to_numpy() for column in ("prompt_ids", "response_ids")
        )
        self.prompt, self.response = (max(1, round(of.mean())) for of in (self.prompts, self.responses))
        trainings = settings.trainings.values()
        self.kinds = dict.fromkeys(
            [(name, settings.generate.precision) for name in self.facts]
            + [(trained_model(train), train.method.training.precision) for train in trainings]
            + [("teacher", train.method.training.precision) for train in trainings if train.method.policy]
        )
        self.budget = Budget(max(FEWEST_SECONDS, seconds - END_SECONDS), 2 * len(self.kinds) + len(trainings))
        self.models: dict[str, PreTrainedModel] = {}
        self.rate = dict.fromkeys((precision for _, precision in self.kinds), 0.0)
        """Most operations per second of any piece so far in each precision."""
        self.engine: Any = None
        self.engine_kind: tuple[Any, ...] = ()
        self.engine_seconds = 0.0
        self.update_seconds: list[float] = []

    def run(self) -> dict[str, Any]:
        """Measure models first, then trainings, which need copies of them."""
        load = {name: self._load(name) for name in self.facts}
        models = {f"{name}.{precision}": self._time_model(name, precision) for name, precision in self.kinds}
        return {
            "load_seconds": load,
            "models": models,
            "trainings": {key: self._time_training(train) for key, train in self._by_engine()},
            "rouge_seconds": _time_rouge(self.examples["response"].tolist()),
            "disk_bytes_per_second": self._time_disk(),
            "peak_memory": peak_bytes(),
        }

    def _by_engine(self) -> list[tuple[str, Train]]:
        """Sort the trainings so that those with one kind of engine follow each other, the student's first."""
        return sorted(
            self.settings.trainings.items(), key=lambda item: str(self._engine_kind(item[1], trained_model(item[1])))
        )

    def _load(self, name: str) -> float:
        self._say(f"loading the {name}")
        began = time.monotonic()
        architecture = self.settings.architectures.get(name)
        if architecture is None:
            model = load_model(self.job.inputs[name], DTYPES[self.settings.generate.precision])
        else:
            model = build_model(architecture, self.shared.tokenizer, 1, DTYPES[self.settings.generate.precision])
        self.models[name] = model.to(device()).eval().requires_grad_(False)  # type: ignore[arg-type]
        return time.monotonic() - began

    def _model(self, name: str, precision: str) -> PreTrainedModel:
        return self.models[name].to(DTYPES[precision])  # type: ignore[return-value]  # in place

    def _time_model(self, name: str, precision: str) -> dict[str, Any]:
        """Scoring of a micro-batch and generation of a batch, in this process."""
        model, facts, settings = self._model(name, precision), self.facts[name], self.settings
        decoding = Decoding(**settings.generate.model_dump(include=set(Sampling.model_fields)))

        def score(size: Size) -> None:
            pairs = [(self._text(size.prompt), self._text(size.response))] * (size.rows * world_size())
            likelihoods(model, self.shared.entries, pairs, size.rows)

        def generate(size: Size) -> None:
            requests = [Request(self._text(size.prompt), size.response, self._stream(n)) for n in range(size.rows)]
            Sampler(model, (), self.shared.entries, decoding, size.rows).sample(requests)

        def scored(size: Size) -> Effort:
            return Effort(1, forward_operations(facts, size.rows, size.prompt, size.response))

        def generated(size: Size) -> Effort:
            return Effort(size.response, scored(size).operations)

        rows = min(settings.responses, self.runtime.generation_batch_size)
        micro = Size(self.runtime.micro_batch_size, self.prompt, self.response)
        batch = Size(rows, self.prompt, self.response)
        weights = facts.parameters * DTYPES[precision].itemsize
        label = f"{name} in {precision}"
        return {
            "scoring": asdict(self._line(f"{label} scores", micro, scored, _timed(score), precision, weights)),
            "generating": asdict(
                self._line(f"{label} generates", batch, generated, _timed(generate), precision, weights)
            ),
            "rows": rows,
            "longest": mean_longest(self.responses, rows),
        }

    def _line(
        self,
        name: str,
        real: Size,
        effort: Callable[[Size], Effort],
        action: Callable[[Size], float],
        precision: str,
        weights: int,
    ) -> Line:
        """Time as large pieces as fit, and say which; from its operations alone where none fits.

        Args:
            name: Kind of work, as the plan shows it.
            real: Size in the run.
            effort: Work of a size.
            action: Does it and returns its seconds.
            precision: Of its matrix products.
            weights: Bytes that each call reads.
        """
        share = _agreed(self.budget.share())
        smallest = effort(Size(1, min(real.prompt, 8), min(real.response, 4)))
        bandwidth = DEVICE_READS if torch.cuda.is_available() else CPU_READS
        expected = smallest.operations * self._untimed(precision).operation + smallest.calls * weights / bandwidth
        pieces = climb(real, effort, action, lambda: _agreed(time.monotonic()), share, expected)
        if not pieces:
            self._say(
                f"{name}: not timed, as the smallest piece would take {expected:.1f} s; estimated from operations"
            )
            return self._untimed(precision)
        line = fit(pieces)
        largest = max(pieces, key=lambda piece: piece.effort.operations)
        self.rate[precision] = max(self.rate[precision], largest.effort.operations / largest.seconds)
        share = largest.effort.operations / effort(real).operations
        self._say(f"{name}: {share:.0%} of its work in {largest.seconds:.2g} s")
        return line

    def _untimed(self, precision: str) -> Line:
        return Line(0.0, 1 / (self.rate[precision] or _product_rate(precision)), UNTIMED, 0.0)

    def _time_training(self, train: Train) -> dict[str, Any]:
        """Time micro-batches and optimizer steps; the effort of a whole step is to be looked up on their line."""
        name, method = trained_model(train), train.method
        training, policy = method.training, method.policy
        rows = micro_batch_size(training.batch_size, self.runtime.micro_batch_size)
        micro = mean_micro_batch(self.prompts, self.responses, training.batch_size, rows, world_size())
        step = self._micro_effort(train, rows, micro.prompt, micro.response, micro.tokens).times(micro.count)
        if policy is not None and policy.plain_text_coefficient:
            blocks = (policy.plain_text_batch_size or training.batch_size) / world_size()
            block = forward_operations(self.facts[name], blocks, 1, train.max_tokens - 1)
            step += Effort(min(micro.count, blocks), (3 + training.gradient_checkpointing) * block)
        facts = {"step": asdict(step), "micro_batch": asdict(micro)}
        if policy is not None:
            at_once = min(self.runtime.generation_batch_size, -(-policy.rollouts // world_size()))
            facts |= {"rows": at_once, "longest": mean_longest(self.responses, at_once)}
        label = f"{name} trains ({method.divergence}{' on rollouts' * (policy is not None)})"
        if not self._engine_fits(train, name):
            self._say(f"{label}: not timed, as its engine would take too long; estimated from operations")
            self.budget.share()
            line = self._untimed(training.precision)
            return facts | {"line": asdict(line), "update_seconds": 0.0, "engine_seconds": 0.0}
        return facts | self._time_steps(train, name, label, micro)

    def _micro_effort(self, train: Train, rows: float, prompt: float, response: float, tokens: float) -> Effort:
        """Forward and backward pass of a micro-batch, and the teacher's part of its loss."""
        facts, teacher = self.facts[trained_model(train)], self.facts["teacher"]
        passes = 3 + train.method.training.gradient_checkpointing  # the backward pass is two forward ones
        operations = passes * forward_operations(facts, rows, prompt, response, tokens)
        if train.method.divergence == "cross_entropy":
            return Effort(1, operations)
        if train.method.policy is None:
            return Effort(1, operations + forward_operations(teacher, rows, prompt, response, tokens))
        return Effort(1, operations + 2 * teacher.width * teacher.tokenizer_entries * rows * tokens)

    def _time_steps(self, train: Train, name: str, label: str, micro: MicroBatch) -> dict[str, Any]:
        precision = train.method.training.precision
        self._make_engine(train, name)
        teacher = self._model("teacher", precision) if train.method.divergence != "cross_entropy" else None
        models = Models(self.engine, teacher, self.shared.entries, ())

        def one_micro_batch(size: Size) -> float:
            feed = self._feed(train, models, size)
            updating = len(self.update_seconds) < UPDATES
            self.engine.set_gradient_accumulation_boundary(updating)
            self.engine.train()

            def backward(size: Size) -> None:
                losses = next(iter(feed.losses(0, size.rows)))
                self.engine.backward(losses["loss"])

            seconds = _timed(backward)(size)
            update = _timed(lambda _: take_step(self.engine))(size)
            if updating:
                self.update_seconds.append(update)
            return seconds

        def effort(size: Size) -> Effort:
            return self._micro_effort(train, size.rows, size.prompt, size.response, size.response)

        weights = 3 * self.facts[name].parameters * DTYPES[precision].itemsize
        real = Size(micro.rows, round(micro.prompt), round(micro.response))
        line = self._line(label, real, effort, one_micro_batch, precision, weights)
        update = min(self.update_seconds, default=0.0)  # the first one makes the optimizer's state
        return {"line": asdict(line), "update_seconds": update, "engine_seconds": self.engine_seconds}

    def _engine_fits(self, train: Train, name: str) -> bool:
        if self._engine_kind(train, name) == self.engine_kind:
            return True
        writes = DEVICE_WRITES if torch.cuda.is_available() else CPU_WRITES
        return ENGINE_BYTES * self.facts[name].parameters / writes < _agreed(self.budget.left) / 2

    def _engine_kind(self, train: Train, name: str) -> tuple[Any, ...]:
        training = train.method.training
        return (name, training.precision, training.lora, training.gradient_checkpointing)

    def _make_engine(self, train: Train, name: str) -> None:
        """Put a copy of a model into an engine, unless the one at hand is alike.

        It accumulates gradients until it is told to step, so that micro-batches are timed without optimizer steps.
        """
        kind, training = self._engine_kind(train, name), train.method.training
        if kind == self.engine_kind:
            return
        began = time.monotonic()
        self.engine, self.engine_kind, self.update_seconds = None, kind, []
        gc.collect()  # engines hold themselves
        model = copy.deepcopy(self._model(name, training.precision)).requires_grad_(True)
        if training.lora is not None:
            add_adapters(model, training.lora)
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        accumulated = training.model_copy(update={"batch_size": world_size() * ACCUMULATED})
        runtime = self.runtime.model_copy(update={"micro_batch_size": 1})
        self.engine = make_engine(HeadedModel(model, self.shared.entries), accumulated, 10**6, runtime)
        self.engine_seconds = time.monotonic() - began

    def _feed(self, train: Train, models: Models, size: Size) -> Feed:
        """A feed whose mini-batch has one micro-batch of the size on each process."""
        method, rows = train.method, size.rows * world_size()
        once = method.training.model_copy(update={"batch_size": rows})
        method = method.model_copy(update={"training": once})
        if method.policy is None:
            return FixedText(models, method, self._examples(rows, size), train.seed)
        policy = method.policy.model_copy(update={"rollouts": rows, "inner_epochs": 1})
        feed = Rollouts(
            models, policy, method, self._examples(rows, size), None, size.prompt + size.response, rows, train.seed
        )
        feed.round = self._sampled_round(train, models, size, rows)
        return feed

    def _sampled_round(self, train: Train, models: Models, size: Size, rows: int) -> Round:
        """A round as if it had been sampled and scored: both models find every token equally likely."""
        assert models.teacher is not None
        assert train.method.policy is not None
        prompts, responses = [self._text(size.prompt)] * rows, [self._text(size.response)] * rows
        even = torch.full((rows, size.response), -float(np.log(self.shared.entries)))  # (B, T)
        hidden = torch.zeros(size.response, self.facts["teacher"].width, dtype=models.teacher.dtype)  # (T, H)
        experience = make_experience(even, even.clone(), responses, train.method.policy)
        return Round(0, prompts, responses, experience, [hidden] * rows, [-even[0]] * rows)

    def _examples(self, rows: int, size: Size) -> pd.DataFrame:
        prompts, responses = [self._text(size.prompt)] * rows, [self._text(size.response)] * rows
        return pd.DataFrame({"row": range(rows), "prompt_ids": prompts, "response_ids": responses})

    def _text(self, length: int) -> list[int]:
        return [number % self.shared.entries for number in range(length)]

    def _stream(self, number: int) -> tuple[int, ...]:
        return stream(Purpose.SPEED, 0, number)

    def _time_disk(self) -> float:
        """Bytes per second that reach the disk of the store."""
        path = self.job.work / f"disk-{rank()}"
        data = os.urandom(DISK_BYTES)
        began = time.monotonic()
        with path.open("wb") as written:
            written.write(data)
            written.flush()
            os.fsync(written.fileno())
        seconds = time.monotonic() - began
        path.unlink()
        return DISK_BYTES / seconds

    def _say(self, words: str) -> None:
        if rank() == 0:
            print(f"{SAID}{words}", flush=True)


def _timed(action: Callable[[Size], object]) -> Callable[[Size], float]:
    """Seconds of an action on the slowest process, with all that it has given the device to do."""

    def timed(size: Size) -> float:
        _synchronize()
        began = time.perf_counter()
        action(size)
        _synchronize()
        return _agreed(time.perf_counter() - began)

    return timed


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _agreed(seconds: float) -> float:
    """The largest value of all processes, which must decide alike when to stop."""
    if world_size() == 1:
        return seconds
    value = torch.tensor(seconds, dtype=torch.float64, device=device())
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


def _product_rate(precision: str) -> float:
    """Operations per second of a matrix product."""
    square = torch.ones(512, 512, dtype=DTYPES[precision], device=device())
    _ = square @ square
    _synchronize()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 0.1:
        for _ in range(4):
            _ = square @ square
        _synchronize()
        count += 4
    return _agreed(2 * 512**3 * count / (time.perf_counter() - began))


def _time_rouge(texts: list[str]) -> float:
    """Mean seconds for one response against one reference."""
    taken: list[float] = []
    until = time.perf_counter() + ROUGE_SECONDS
    while len(taken) < ROUGE_FEWEST or (len(taken) < len(texts) and time.perf_counter() < until):
        began = time.perf_counter()
        rouge_l(texts[len(taken) % len(texts)], [texts[(len(taken) + 1) % len(texts)]])
        taken.append(time.perf_counter() - began)
    return statistics.fmean(sorted(taken)[: -len(taken) // 20 or None])  # without pauses of a busy machine
