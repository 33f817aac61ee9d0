"""Times of all that repeats in a run, from pieces that fit the time there is to measure (stage `speed`).

Each model is loaded once, generates and scores; copies of it are trained for a few micro-batches of every kind. The
weights of models that are not trained yet are random, and no response ends before its length.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from minillm.config import Sampling
from minillm.data.learnt_turns import prompts_of
from minillm.evaluation.likelihood import likelihoods
from minillm.generation.drawing import Decoding
from minillm.generation.sampling import Sampler
from minillm.generation.slots import Request
from minillm.metrics.rouge import rouge_l
from minillm.models.batches import Limit
from minillm.models.causal_lm import DTYPES, SLOW_BFLOAT16, bfloat16_is_slow, build_model, load_frozen, load_model
from minillm.models.passes import is_sharded
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.planning.clock import agreed, synchronize, timed
from minillm.planning.extrapolation import UNTIMED, Budget, Effort, Line, Size, climb, fit, steps_up_to
from minillm.planning.micro_batches import RowLengths, mean_longest
from minillm.planning.outlook import KINDS, write_outlook
from minillm.planning.speed import SAID
from minillm.planning.stage_estimate import read_models
from minillm.planning.training_time import Trainings
from minillm.planning.work import forward_operations, trained_model
from minillm.stages.base import Job
from minillm.stages.measuring import Speed
from minillm.stages.reading import TOKENIZER
from minillm.streams import Purpose, stream
from minillm.words import percent
from minillm.worker.processes import device, peak_bytes, process_group, rank, world_size

END_SECONDS = 4.0
"""Kept for what comes after the models: Rouge-L, the disk, and the end of the process."""
ROUGE_SECONDS = 0.5
ROUGE_FEWEST = 40
DISK_BYTES = 8 << 20
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
        self.shared = load_shared_tokenizer(job.inputs["prepared"] / TOKENIZER)
        self.facts = read_models(job.inputs["prepared"])
        rows = pd.read_parquet(job.inputs["examples"] / "train.parquet")
        prompts = prompts_of(rows)
        self.references = prompts["response"].tolist()
        asked, answered = (prompts[column].map(len).to_numpy() for column in ("prompt_ids", "response_ids"))
        self.rows, self.prompts = RowLengths.of(rows), RowLengths(asked, answered, answered)
        self.prompt, self.response = (max(1, round(of.mean())) for of in (asked, answered))
        trainings = settings.trainings.values()
        self.kinds = dict.fromkeys(
            [(name, settings.generate.precision) for name in self.facts]
            + [(trained_model(train), train.method.training.precision) for train in trainings]
            + [
                ("teacher", train.method.training.precision)
                for train in trainings
                if train.method.policy and "teacher" in self.facts
            ]
        )
        kinds = 2 * len(self.kinds) + len(trainings) + (KINDS if settings.outlook else 0)
        self.budget = Budget(max(FEWEST_SECONDS, seconds - END_SECONDS), kinds)
        self.models: dict[str, PreTrainedModel] = {}
        self.lines: dict[tuple[str, str], Line] = {}
        """Latest line of each model and precision over calls of many tokens."""

    def run(self) -> dict[str, Any]:
        """Measure models first, then trainings, which need copies of them."""
        if bfloat16_is_slow() and any(precision == "bfloat16" for _, precision in self.kinds):
            self.say(SLOW_BFLOAT16)
        load = {name: self._load(name) for name in self.facts}
        loaded = [(name, self.settings.generate.precision) for name in self.facts]
        models = {kind: self._time_model(*kind) for kind in loaded}
        write_outlook(self, models)  # before weights are rounded to another precision
        models |= {kind: self._time_model(*kind) for kind in self.kinds if kind not in loaded}
        return {
            "load_seconds": load,
            "models": {f"{name}.{precision}": times for (name, precision), times in models.items()},
            "trainings": Trainings(self).time_all(),
            "rouge_seconds": _time_rouge(self.references),
            "disk_bytes_per_second": self._time_disk(),
            "peak_memory": peak_bytes(),
        }

    def _load(self, name: str) -> float:
        self.say(f"loading the {name}")
        began = time.monotonic()
        architecture = self.settings.architectures.get(name)
        if architecture is None and name == "teacher":
            model = load_frozen(self.job.inputs[name], DTYPES[self.settings.generate.precision], self.runtime)
        elif architecture is None:
            model = load_model(self.job.inputs[name], DTYPES[self.settings.generate.precision])
        else:
            model = build_model(architecture, self.shared.tokenizer, 1, DTYPES[self.settings.generate.precision])
        self.models[name] = model.to(device()).eval().requires_grad_(False)  # type: ignore[arg-type]
        return time.monotonic() - began

    def model(self, name: str, precision: str) -> PreTrainedModel:
        """Return a model in a precision; another one that it was in before is gone."""
        if is_sharded(self.models[name]):
            if self.models[name].dtype != DTYPES[precision]:
                self.models[name] = load_frozen(self.job.inputs[name], DTYPES[precision], self.runtime)
            return self.models[name]
        return self.models[name].to(DTYPES[precision])  # type: ignore[return-value]

    def _time_model(self, name: str, precision: str) -> dict[str, Any]:
        """Scoring of a micro-batch and generation of a batch, in this process."""
        model, facts, settings = self.model(name, precision), self.facts[name], self.settings
        decoding = Decoding(**settings.generate.model_dump(include=set(Sampling.model_fields)))

        def score(size: Size) -> None:
            pairs = [(self.text(size.prompt), self.text(size.response))] * (size.rows * world_size())
            likelihoods(model, self.shared.entries, pairs, Limit(rows=size.rows))

        def generate(size: Size) -> None:
            requests = [
                Request(self.text(size.prompt), size.response, stream(Purpose.SPEED, 0, n)) for n in range(size.rows)
            ]
            Sampler(model, (), self.shared.entries, decoding, size.rows).sample(requests)

        def scored(size: Size) -> Effort:
            return Effort(1, forward_operations(facts, size.rows, size.prompt, size.response))

        def generated(size: Size) -> Effort:
            return Effort(size.response, scored(size).operations)

        rows = min(settings.responses, self.runtime.generation_batch_size)
        micro = Size(self.runtime.rows_at_once(self.prompt + self.response), self.prompt, self.response)
        batch = Size(rows, self.prompt, self.response)
        label, key = f"{name} in {precision}", (name, precision)
        return {
            "scoring": asdict(self.line(f"{label} scores", micro, scored, timed(score), key)),
            "generating": asdict(self.line(f"{label} generates", batch, generated, timed(generate), key)),
            "rows": rows,
            "longest": mean_longest(self.prompts.responses, rows),
        }

    def line(
        self,
        name: str,
        real: Size,
        effort: Callable[[Size], Effort],
        action: Callable[[Size], float],
        key: tuple[str, str],
    ) -> Line:
        """Time as large pieces as fit, and say which; from its operations alone where none fits.

        Args:
            name: Kind of work, as the plan shows it.
            real: Size in the run.
            effort: Work of a size.
            action: Does it and returns its seconds.
            key: Model and precision.
        """
        share = agreed(self.budget.share())
        weights = self.facts[key[0]].parameters * DTYPES[key[1]].itemsize
        reads = DEVICE_READS if torch.cuda.is_available() else CPU_READS
        smallest = effort(steps_up_to(real)[0])
        expected = self.untimed(key).at(smallest).value + smallest.calls * weights / reads
        pieces = climb(real, effort, action, lambda: agreed(time.monotonic()), share, expected)
        if not pieces:
            self.say(f"{name}: not timed, as {expected:.1f} s for its smallest piece is too long")
            return self.untimed(key)
        line = fit(pieces)
        largest = max(pieces, key=lambda piece: piece.effort.operations)
        if largest.effort.calls == 1:
            self.lines[key] = line
        share = largest.effort.operations / effort(real).operations
        self.say(f"{name}: {percent(share)} of its work in {largest.seconds:.2g} s")
        return line

    def untimed(self, key: tuple[str, str]) -> Line:
        """Line of work that was not timed: that of the same model's latest work or, before any, of a matrix product."""
        known = self.lines.get(key) or Line(0.0, 1 / _product_rate(key[1]), 0.0, 0.0)
        return replace(known, error=UNTIMED, largest=0.0)

    def text(self, length: int) -> list[int]:
        """Return some tokens."""
        return [number % self.shared.entries for number in range(length)]

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

    def say(self, words: str) -> None:
        """Print a line that the plan shows."""
        if rank() == 0:
            print(f"{SAID}{words}", flush=True)


def _product_rate(precision: str) -> float:
    """Operations per second of a matrix product."""
    square = torch.ones(512, 512, dtype=DTYPES[precision], device=device())
    _ = square @ square
    synchronize()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 0.1:
        for _ in range(4):
            _ = square @ square
        synchronize()
        count += 4
    return agreed(2 * 512**3 * count / (time.perf_counter() - began))


def _time_rouge(texts: list[str]) -> float:
    """Mean seconds for one response against one reference."""
    taken: list[float] = []
    until = time.perf_counter() + ROUGE_SECONDS
    while len(taken) < ROUGE_FEWEST or (len(taken) < len(texts) and time.perf_counter() < until):
        began = time.perf_counter()
        rouge_l(texts[len(taken) % len(texts)], [texts[(len(taken) + 1) % len(texts)]])
        taken.append(time.perf_counter() - began)
    return statistics.fmean(sorted(taken)[: -len(taken) // 20 or None])  # without pauses of a busy machine
