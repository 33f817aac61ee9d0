"""Work and memory of each kind of stage: the one table that says which stages run models, and how."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from minillm.config import Runtime
from minillm.knowledge.forms import bytes_per_token
from minillm.models.facts import ModelFacts
from minillm.planning.memory import Memory, generation_memory, scoring_memory, training_disk, training_memory
from minillm.planning.work import Amounts, Work, generating, scoring, training_work
from minillm.pretraining.corpus import PART as SEQUENCES
from minillm.stages.base import Stage
from minillm.stages.measuring import Calibration, Cost, Exposure, Generate, HeldOut
from minillm.stages.pretraining import SampleCorpus
from minillm.stages.system2 import Ask
from minillm.stages.training import Respond, StoreKnowledge, Train
from minillm.system2.asking import PART as ANSWERS


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
    """
    facts, teacher = models[model], models.get("teacher")
    prompts = sum(amounts.benchmark_prompts.values())

    def scored(models: Mapping[str, ModelFacts], texts: float, precision: str) -> Demand:
        memory = scoring_memory(models, precision, runtime, max_tokens)
        return Demand(scoring(models, texts, amounts), memory)

    match stage:
        case Train(method=method):
            compared = None if method.divergence == "cross_entropy" else teacher
            memory = training_memory(facts, compared, method, runtime, stage.max_tokens, round(amounts.response))
            work = training_work(stage, facts, teacher, amounts, done)
            return Demand(work, memory, training_disk(facts, method))
        case StoreKnowledge():
            of_texts = scored({model: facts}, amounts.examples, stage.precision)
            tokens = amounts.examples * amounts.response
            each = bytes_per_token(stage, facts.tokenizer_entries, facts.width)
            return replace(of_texts, disk=round(tokens * each))
        case Respond():
            work = generating(models, {model: amounts.examples}, {model: 1}, amounts)
            rows = amounts.examples
            return Demand(work, generation_memory(facts, model, stage.precision, runtime, rows, stage.max_tokens))
        case Ask(chain=chain):
            calls = len(chain.steps) * -(-amounts.examples // (ANSWERS * len(chain.steps)))
            work = generating(models, {model: amounts.examples}, {model: calls}, amounts)
            return Demand(work, generation_memory(facts, model, stage.precision, runtime, ANSWERS, stage.max_tokens))
        case SampleCorpus():
            calls = -(-amounts.examples // SEQUENCES)
            work = generating(models, {model: amounts.examples}, {model: calls}, amounts)
            return Demand(work, generation_memory(facts, model, stage.precision, runtime, SEQUENCES, stage.max_tokens))
        case Generate():
            sets = amounts.benchmark_prompts
            work = generating(models, {model: prompts * len(stage.seeds)}, {model: len(sets)}, amounts)
            rows = len(stage.seeds) * max(sets.values())
            return Demand(work, generation_memory(facts, model, stage.precision, runtime, rows, stage.max_tokens))
        case Cost(generate=generate):
            # One model after another, each in a process of its own.
            names = ["teacher" if role == "teacher" else "student" for role in stage.roles]
            calls = {name: (1 + Cost.rounds) * names.count(name) for name in names}
            work = generating(models, {name: count * Cost.prompts for name, count in calls.items()}, calls, amounts)
            largest = max((models[name] for name in names), key=lambda facts: facts.parameters)
            memory = generation_memory(largest, "", generate.precision, runtime, Cost.prompts, generate.max_tokens)
            return Demand(work, memory)
        case Exposure():
            own = min(stage.prompts or prompts, amounts.benchmark_prompts[stage.benchmark])
            return scored(models, 2 * own, stage.precision)
        case HeldOut():
            return scored({model: facts}, prompts + amounts.held_out_tokens / amounts.sequence, stage.precision)
        case Calibration():
            return scored({model: facts}, amounts.choices, stage.precision)
        case _:
            return Demand(Work(), None)
