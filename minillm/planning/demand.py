"""Work and memory of each kind of stage: the one table that says which stages run models, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from minillm.config import Runtime
from minillm.knowledge.forms import bytes_per_token
from minillm.models.facts import UNKNOWN_POSITIONS, ModelFacts
from minillm.planning.memory import (
    Memory,
    Running,
    downstream_memory,
    generation_memory,
    scoring_memory,
    training_disk,
    training_memory,
)
from minillm.planning.work import Amounts, Work, downstream_work, generating, longest_question, scoring, training_work
from minillm.pretraining.corpus import PART as SEQUENCES
from minillm.stages.base import Stage
from minillm.stages.measuring import Calibration, Cost, DownstreamScore, Exposure, Generate, HeldOut
from minillm.stages.pretraining import SampleCorpus
from minillm.stages.system2 import Ask
from minillm.stages.training import Respond, StoreKnowledge, Train
from minillm.system2.asking import PART as ANSWERS

PRECISIONS: dict[type[Stage], str] = {StoreKnowledge: "teacher.knowledge.precision", Ask: "asking.precision"}
"""Fields that say the precision of a stage that runs a model, where it is not `evaluation.precision`."""


@dataclass(frozen=True)
class Demand:
    """Needs of one stage."""

    work: Work
    memory: Memory | None
    """Memory of each process; None if no model is loaded."""
    disk: int = 0
    """Bytes on disk, where they are many."""


def stage_demand(
    stage: Stage,
    model: str,
    models: Mapping[str, ModelFacts],
    amounts: Amounts,
    runtime: Runtime,
    max_tokens: int,
    done: int = 0,
) -> Demand:
    """Work and memory of a stage; no work and no memory for a stage that runs no model.

    Args:
        stage: Settings of the stage.
        model: `teacher` or `student`, whichever the stage trains or measures.
        models: Facts of both, or of the student alone where the teacher runs elsewhere and takes nothing here.
        amounts: Amounts of data.
        runtime: Processes and batch sizes.
        max_tokens: Longest prompt with response, for stages whose settings do not say.
        done: Optimizer steps behind the last checkpoint.

    Raises:
        TypeError: Nothing is known of this kind of stage.
    """
    if not stage.shares_work:
        runtime = runtime.model_copy(update={"processes": 1})
    facts, teacher = models[model], models.get("teacher")

    def running(precision: str) -> Running:
        field = PRECISIONS.get(type(stage), "evaluation.precision")
        return Running(runtime, precision, field, stage.shares_work)

    def scored(models: Mapping[str, ModelFacts], texts: float, precision: str) -> Demand:
        return Demand(scoring(models, texts, amounts), scoring_memory(models, running(precision), max_tokens))

    match stage:
        case Train(method=method):
            compared = None if method.divergence == "cross_entropy" else teacher
            memory = training_memory(facts, compared, method, runtime, stage.max_tokens, round(amounts.response))
            work = training_work(stage, facts, teacher, amounts, done)
            return Demand(work, memory, training_disk(facts, method))
        case Respond() | Ask() | SampleCorpus() | Generate():
            count, calls, rows = _responses(stage, amounts)
            work = generating(models, {model: count}, {model: calls}, amounts)
            return Demand(work, generation_memory(facts, model, running(stage.precision), rows, stage.max_tokens))
        case Cost(generate=generate):
            # One model after another, each in a process of its own.
            names = ["teacher" if role == "teacher" else "student" for role in stage.roles]
            calls = {name: (1 + Cost.rounds) * names.count(name) for name in names}
            work = generating(models, {name: count * Cost.prompts for name, count in calls.items()}, calls, amounts)
            name = max(calls, key=lambda name: models[name].parameters)
            running_one = running(generate.precision)
            return Demand(work, generation_memory(models[name], name, running_one, Cost.prompts, generate.max_tokens))
        case Exposure():
            return scored(models, _texts(stage, amounts), stage.precision)
        case HeldOut() | Calibration():
            return scored({model: facts}, _texts(stage, amounts), stage.precision)
        case StoreKnowledge():
            kept = amounts.examples * amounts.response * bytes_per_token(stage, facts.tokenizer_entries, facts.width)
            return replace(scored({model: facts}, amounts.examples, stage.precision), disk=round(kept))
        case DownstreamScore(limit=limit):
            rows = runtime.rows_at_once(facts.positions or UNKNOWN_POSITIONS)
            tokens = round(rows * min(longest_question(amounts), facts.positions or UNKNOWN_POSITIONS))
            memory = downstream_memory(facts, model, running(stage.precision), tokens)
            return Demand(downstream_work(model, facts, limit, rows, amounts), memory)
        case _ if stage.reads_only or not stage.runs_model:
            return Demand(Work(), None)
    raise TypeError(f"minillm.planning.demand does not say what the stage {stage.kind!r} needs; add it there")


def _responses(stage: Respond | Ask | SampleCorpus | Generate, amounts: Amounts) -> tuple[int, int, int]:
    """Return the responses that a stage generates, calls of the sampler for them, and the most that one call takes."""
    count = amounts.examples
    match stage:
        case Respond():
            return count, 1, count
        case Ask(chain=chain):
            return count, len(chain.steps) * -(-count // (ANSWERS * len(chain.steps))), ANSWERS
        case SampleCorpus():
            return count, -(-count // SEQUENCES), SEQUENCES
        case Generate(seeds=seeds):
            sets = amounts.benchmark_prompts.values()
            return sum(sets) * len(seeds), len(sets), len(seeds) * max(sets)


def _texts(stage: Exposure | HeldOut | Calibration, amounts: Amounts) -> float:
    """Return the number of texts that a stage scores with each of its models."""
    prompts = sum(amounts.benchmark_prompts.values())
    match stage:
        case Exposure():
            asked = min(stage.prompts or prompts, amounts.benchmark_prompts[stage.benchmark])
            return 2 * asked * amounts.seeds  # the responses of both models
        case HeldOut():
            return prompts + amounts.held_out_tokens / amounts.sequence
        case Calibration():
            return amounts.choices
