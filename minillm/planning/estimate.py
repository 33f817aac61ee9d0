"""Seconds of each stage, from its work and the speed of this machine."""

import statistics
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from minillm.config import Endpoint, Runtime
from minillm.models.facts import ModelFacts
from minillm.planning.asked import asked_by, waiting
from minillm.planning.extrapolation import Effort, Line, Seconds
from minillm.planning.memory import WEIGHT, checkpoint_bytes
from minillm.planning.work import Amounts, Work, forward_operations, same_speed, trained_model
from minillm.stages.base import Stage
from minillm.stages.measuring import Score
from minillm.stages.training import Train


@dataclass(frozen=True)
class Speeds:
    """Measured speed, and what is needed to turn it into seconds of a stage."""

    measured: Mapping[str, Any]
    """speed.json, or the mean of several."""
    models: Mapping[str, ModelFacts]
    """Facts of `teacher` and `student`."""
    amounts: Amounts
    runtime: Runtime
    """Processes share generation, scoring and training; each was timed for one process's share."""
    precision: str
    """Precision of generation and scoring in the evaluation."""
    responses: int
    """Responses of one model to all benchmarks with all seeds."""
    endpoint: Endpoint | None = None
    """Endpoint of a teacher that runs elsewhere."""

    def stage(self, stage: Stage, work: Work) -> Seconds:
        """Estimate a stage from the start of its worker to its end."""
        asked = waiting(asked_by(stage, work, self.amounts, self.endpoint))
        if isinstance(stage, Train):
            return self._training(stage, work) + asked
        processes = self.runtime.processes if stage.shares_work else 1
        shared = replace(self, runtime=self.runtime.model_copy(update={"processes": processes}))
        return shared._running(stage, work) + asked

    def was_timed(self, stage: Stage, work: Work) -> bool:
        """Tell if everything that the stage repeats was timed, and nothing estimated from operations alone."""
        if isinstance(stage, Train):
            measured = self.measured["trainings"][same_speed(stage)]
            return measured["line"]["largest"] > 0
        lines = [self.measured["models"][f"{name}.{self.precision}"]["generating"] for name in work.generated]
        lines += [self.measured["models"][f"{name}.{self.precision}"]["scoring"] for name in work.scored]
        return all(line["largest"] > 0 for line in lines)

    def _running(self, stage: Stage, work: Work) -> Seconds:
        """Estimate a stage that trains nothing, without its waiting for an endpoint."""
        seconds = Seconds.exactly(self.measured["start_seconds"] + self._loading({*work.generated, *work.scored}))
        for name, tokens in work.generated.items():
            calls = work.sampler_calls[name]
            seconds += self._generating(name, self.precision, tokens / self.amounts.response / calls).times(calls)
        for name, tokens in work.scored.items():
            seconds += self._scoring(name, self.precision, tokens / self.amounts.sequence)
        if isinstance(stage, Score):
            seconds += Seconds.exactly(self.responses * self.measured["rouge_seconds"])
        return seconds

    def _training(self, stage: Train, work: Work) -> Seconds:
        measured, name = self.measured["trainings"][same_speed(stage)], trained_model(stage)
        step = Line(**measured["line"]).at(Effort(**measured["step"])) + Seconds.exactly(measured["update_seconds"])
        loaded = {name, "teacher"} & self.models.keys() if stage.method.runs_teacher else {name}
        begun = self.measured["training_start_seconds"] + measured["engine_seconds"] + self._loading(loaded)
        checkpoints = 1 + work.steps // self.runtime.checkpoint_every
        written = checkpoints * checkpoint_bytes(self.models[name], stage.method)
        seconds = Seconds.exactly(begun + written / self.measured["disk_bytes_per_second"])
        seconds += step.times(work.steps) + self._validation(stage, name).times(work.validations)
        if work.rounds:
            seconds += self._round(stage, name, measured).times(work.rounds)
        return seconds

    def _loading(self, names: Set[str]) -> float:
        return sum(self.measured["load_seconds"][name] for name in names)

    def _round(self, stage: Train, name: str, measured: Mapping[str, Any]) -> Seconds:
        """One round of rollouts: batches start together and end with their longest response; both models score them."""
        policy, precision, prompt = stage.method.policy, stage.method.training.precision, self.amounts.prompt
        assert policy is not None
        mine, micro = policy.rollouts / self.runtime.processes, measured["micro_batch"]
        tokens, seconds = mine / measured["rows"] * measured["longest"], Seconds()
        for model, share in ((name, 1 - policy.teacher_mix), ("teacher", policy.teacher_mix)):
            if model not in self.models:  # it runs elsewhere
                continue
            lines, facts = self.measured["models"][f"{model}.{precision}"], self.models[model]
            # Each model sees all tokens in the end, however few it draws.
            if share:
                drawn = Effort(tokens * share, forward_operations(facts, mine, prompt, self.amounts.response))
                seconds += Line(**lines["generating"]).at(drawn).times(policy.most_sampled)
            scored = forward_operations(facts, mine, micro["prompt"], micro["response"], micro["tokens"])
            seconds += Line(**lines["scoring"]).at(Effort(mine / micro["rows"], scored))
        return seconds

    def _validation(self, stage: Train, name: str) -> Seconds:
        """One validation, with the weights that it may keep."""
        training = stage.method.training
        rows = min(stage.validation_prompts, self.amounts.validation)
        seconds = self._scoring(name, training.precision, rows)
        if training.select_by != "validation_loss":
            seconds += self._generating(name, training.precision, rows)
            seconds += Seconds.exactly(rows * self.measured["rouge_seconds"])
        size = self.models[name].parameters * WEIGHT[training.precision]
        return seconds + Seconds.exactly(size / self.measured["disk_bytes_per_second"])

    def _generating(self, name: str, precision: str, responses: float) -> Seconds:
        """One call of the sampler: places are filled again while there are prompts, then the last rows end alone."""
        measured, mean = self.measured["models"][f"{name}.{precision}"], self.amounts.response
        mine, rows = responses / self.runtime.processes, measured["rows"]
        tokens = max(mine, rows) / rows * mean + max(0.0, measured["longest"] - mean)
        operations = forward_operations(self.models[name], mine, self.amounts.prompt, mean)
        return Line(**measured["generating"]).at(Effort(tokens, operations))

    def _scoring(self, name: str, precision: str, sequences: float) -> Seconds:
        mine = sequences / self.runtime.processes
        operations = forward_operations(self.models[name], mine, self.amounts.prompt, self.amounts.response)
        line = Line(**self.measured["models"][f"{name}.{precision}"]["scoring"])
        return line.at(Effort(mine / self.runtime.rows_at_once(self.amounts.sequence), operations))


def mean_speed(measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of every number of several speed.json, written by copies that ran at once as stages will."""
    first = measured[0]
    return {
        name: mean_speed([speed[name] for speed in measured])
        if isinstance(value, Mapping)
        else statistics.fmean(speed[name] for speed in measured)
        for name, value in first.items()
    }
