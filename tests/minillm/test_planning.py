"""Plans checked by hand: operations, memory, what cannot fit, and stages that wait for each other."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from docs.large_teacher import tables
from minillm.config import Lora, Method, Policy, PromptChain, Runtime, Sampling, Template, Top, Training
from minillm.errors import StageError
from minillm.models.batches import Limit
from minillm.models.facts import ModelFacts
from minillm.planning.demand import Demand, stage_demand
from minillm.planning.estimate import Speeds, mean_speed
from minillm.planning.extrapolation import MARGIN, Budget, Effort, Line, Size, Timed, climb, fit, steps_up_to
from minillm.planning.memory import ADAM, LIBRARIES, training_disk, training_memory
from minillm.planning.micro_batches import MicroBatch, RowLengths, mean_longest, mean_micro_batch
from minillm.planning.schedule import Step, span
from minillm.planning.stage_estimate import StageEstimate, require_fit
from minillm.planning.work import Amounts, Work, forward_operations, same_speed
from minillm.preparation.model_checks import build_skeleton, inspect_model
from minillm.stages import STAGES
from minillm.stages.base import Stage
from minillm.stages.measuring import Calibration, Cost, DownstreamScore, Exposure, Generate, HeldOut, Speed
from minillm.stages.pretraining import SampleCorpus
from minillm.stages.reading import TaskSize
from minillm.stages.system2 import Ask
from minillm.stages.training import Respond, StoreKnowledge, Train
from tests.minillm.jobs import ROOT

TRAINING = Training(learning_rate=1e-3, batch_size=4, steps=10, evaluate_every=4)
MODEL = ModelFacts(
    model_type="gpt2",
    parameters=1000,
    body_parameters=600,
    matrix_edges=100,
    layers=2,
    width=8,
    cache_width=16,
    embedding_rows=30,
    tokenizer_entries=30,
    positions=64,
)
LARGE = MODEL.model_copy(update={"parameters": 4000, "body_parameters": 3000, "width": 16, "cache_width": 32})
MODELS = {"teacher": LARGE, "student": MODEL}
GENERATE = Generate(
    seeds=(1, 2),
    strategy="sample",
    temperature=1.0,
    top_k=None,
    top_p=None,
    no_repeat_ngram=None,
    precision="float32",
    max_tokens=32,
)
AMOUNTS = Amounts(
    rows=40,
    row_tokens=20,
    examples=40,
    validation=6,
    prompt=12,
    response=8,
    benchmark_prompts={"dolly": 5, "sni": 7},
    seeds=2,
    choices=3,
    tasks=(
        TaskSize(questions=9, shots=1, kind="multiple_choice"),
        TaskSize(questions=3, shots=0, kind="generate_until"),
    ),
)


def train(method: Method, role: str = "sft") -> Train:
    return Train(role=role, method=method, architecture={}, max_tokens=32, validation_prompts=3, seed=1)


def on_text(divergence: str = "cross_entropy", teacher: str = "live", **changes: object) -> Method:
    training = TRAINING.model_copy(update=changes)
    fields = {"text": "dataset", "divergence": divergence, "teacher": teacher, "training": training}
    return Method.model_validate(fields)


def on_rollouts() -> Method:
    policy = Policy(rollouts=8, inner_epochs=2, plain_text_coefficient=0.0)
    return Method(text="rollouts", divergence="reverse_kl", policy=policy, training=TRAINING)


def ask() -> Ask:
    same = GENERATE.model_dump(include={*Sampling.model_fields, "precision", "max_tokens"})
    chain = PromptChain.model_validate("rephrase_and_respond_2")
    fields = {"part": "test", "chain": chain, "samples": 8, "orders": 1, "seed": 1, "template": Template()}
    return Ask.model_validate({**fields, **same, "max_prompt_tokens": 24, "max_response_tokens": None})


EXAMPLES = [
    train(on_rollouts()),
    Calibration(role="sft", sets=("quiz",), precision="float32"),
    Cost(roles=("teacher",), benchmark="dolly", generate=GENERATE),
    DownstreamScore(role="sft", limit=None, template=None, precision="float32"),
    Exposure(role="sft", benchmark="sni", max_length=8, prompts=6, precision="float32"),
    GENERATE,
    HeldOut(role="sft", benchmarks=(), texts=(), precision="float32", max_tokens=32, block_tokens=32),
    Respond(role="teacher", max_tokens=32, precision="float32", seed=1),
    StoreKnowledge(precision="float32"),
    ask(),
    SampleCorpus(sequences=9, validation_size=1, max_tokens=32, temperature=1.0, precision="float32", seed=1),
]
"""One of each kind of stage that runs a model."""


def stage_work(stage: Stage, model: str, done: int = 0) -> Work:
    return stage_demand(stage, model, MODELS, AMOUNTS, Runtime(), 32, done).work


def inspected(architecture: dict) -> ModelFacts:
    return inspect_model("student", *build_skeleton("student", architecture, 30), 30)


def test_the_weights_every_token_meets_are_those_of_the_blocks():
    facts = inspected({"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 64})
    norms, attention, mlp = 2 * 2 * 8, 8 * 24 + 24 + 8 * 8 + 8, 8 * 32 + 32 + 32 * 8 + 8
    assert facts.body_parameters == 2 * (norms + attention + mlp) + 2 * 8  # and the last norm
    assert facts.parameters == facts.body_parameters + (30 + 64) * 8
    assert (facts.layers, facts.width, facts.cache_width) == (2, 8, 16)
    assert facts.matrix_edges == 2 * ((8 + 24) + (8 + 8) + (8 + 32) + (32 + 8))


def test_grouped_queries_keep_fewer_keys_and_values():
    architecture = {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    assert inspected(architecture).cache_width == 2 * 2 * 2


def test_a_forward_pass_is_two_operations_per_weight_and_token():
    # 12 + 8 tokens: weights, attention to 10 tokens on average in 2 layers of 8 (scores and values), head at 8.
    assert forward_operations(MODEL, 1, 12, 8) == 20 * (2 * 600 + 4 * 2 * 8 * 10) + 8 * 2 * 8 * 30


def test_training_takes_three_forward_passes_and_the_teachers_one():
    once, teacher = (forward_operations(model, 1, 12, 8) for model in (MODEL, LARGE))
    validated = 3 * 3 * 2 * once  # after steps 4, 8 and 10, of 3 rows: loss and responses
    sft = stage_work(train(on_text()), "student")
    assert (sft.steps, sft.validations, sft.tokens) == (10, 3, 10 * 4 * 20)
    assert sft.operations == 3 * 40 * once + validated
    kd = stage_work(train(on_text("forward_kl")), "student")
    assert kd.operations == sft.operations + 40 * teacher
    assert stage_work(train(on_text("forward_kl", teacher="top")), "student").operations == sft.operations
    minillm = stage_work(train(on_rollouts()), "student")
    assert minillm.rounds == 3  # of 4 steps each
    assert minillm.operations == sft.operations + 2 * 3 * 8 * (once + teacher)  # sampled, then scored


def test_a_checkpoint_leaves_less_to_do():
    left = stage_work(train(on_rollouts()), "student", done=8)
    assert (left.steps, left.rounds, left.validations) == (2, 1, 1)


def test_measurements_count_their_texts():
    assert stage_work(GENERATE, "teacher").generated == {"teacher": 12 * 2 * 8}
    exposure = Exposure(role="sft", benchmark="sni", max_length=8, prompts=6, precision="float32")
    assert stage_work(exposure, "student").scored == dict.fromkeys(MODELS, 2 * 2 * 6 * 20), "of both models and seeds"
    cost = Cost(roles=("teacher", "sft", "kd"), benchmark="dolly", generate=GENERATE)
    assert stage_work(cost, "student").generated == {"teacher": 6 * 64 * 8, "student": 2 * 6 * 64 * 8}


def test_answers_by_a_chain_are_sampled_part_by_part():
    # 1,280 answers of two steps, in parts of 1,024 answers.
    work = stage_demand(ask(), "student", MODELS, replace(AMOUNTS, examples=2560), Runtime(), 32).work
    assert (work.generated, work.sampler_calls) == ({"student": 2560 * 8}, {"student": 4})


def test_the_harness_answers_each_choice_and_its_examples():
    downstream = DownstreamScore(role="sft", limit=5, template=None, precision="float32")
    work = stage_work(downstream, "student")
    scored = 5 * 4 * 2 * 20  # five questions of the nine, four choices, an example as long as a row
    assert (work.scored, work.generated) == ({"student": scored}, {"student": 3 * 8})
    assert work.sampler_calls == {"student": 1}
    two_at_once = Runtime(micro_batch_tokens=2 * 64, teacher_zero_stage=3, processes=4)  # a model sees 64 tokens
    of_student, of_teacher = (
        stage_demand(downstream, name, MODELS, AMOUNTS, two_at_once, 32) for name in ("student", "teacher")
    )
    assert of_student.work.sampler_calls == {"student": 2}
    assert of_student.memory is not None
    assert of_teacher.memory is not None
    assert of_student.memory.parts["activations"] == 2 * 40 * (8 * 4 * 17 + 3 * 4 * 30)
    assert of_teacher.memory.parts["teacher"] >= 4 * 4000, "it is one process, whatever the run has"


@pytest.mark.parametrize("stage", EXAMPLES, ids=lambda stage: stage.kind)
def test_every_stage_that_runs_a_model_has_its_work_and_memory(stage: Stage):
    demand = stage_demand(stage, "student", MODELS, AMOUNTS, Runtime(), 32)
    assert demand.work.tokens > 0
    assert demand.memory is not None


def test_no_stage_counts_as_nothing_unless_it_says_so():
    of_models = {type(stage) for stage in EXAMPLES}
    without = {stage for stage in STAGES.values() if stage.reads_only or not stage.runs_model}
    assert set(STAGES.values()) == of_models | without | {Speed}, "Speed is a plan's own"
    assert not of_models & without
    undeclared = Speed(architectures={}, trainings={}, generate=GENERATE, responses=1, seconds=1.0)
    with pytest.raises(TypeError, match="does not say what the stage 'speed' needs"):
        stage_work(undeclared, "student")


@pytest.mark.parametrize(
    ("stage", "parts"),
    [(0, (4000, 4000, 8000)), (1, (4000, 4000, 2000)), (2, (4000, 1000, 2000)), (3, (1000, 1000, 2000))],
)
def test_zero_divides_its_parts_among_processes(stage: int, parts: tuple[int, int, int]):
    runtime = Runtime(zero_stage=stage, processes=4)  # type: ignore[arg-type]
    memory = training_memory(MODEL, None, on_text(), runtime, 32, 8).parts
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == parts


@pytest.mark.parametrize(("processes", "share"), [(1, 4000), (2, 2000), (4, 1000)])
def test_a_sharded_teacher_is_a_share_its_head_and_what_a_pass_gathers(processes: int, share: int):
    runtime = Runtime(teacher_zero_stage=3, processes=processes)
    held = 4 * (share + 30 * 16 + 2 * 3000 // 2)  # of 2 layers, one and the next
    assert training_memory(MODEL, LARGE, on_text("forward_kl"), runtime, 32, 8).parts["teacher"] == held
    responses = Respond(role="teacher", max_tokens=32, precision="float32", seed=1)
    scored = Calibration(role="teacher", sets=("quiz",), precision="float32")
    for stage in (responses, scored, StoreKnowledge(precision="float32"), GENERATE):
        for model, parts in (("teacher", (held, 0)), ("student", (0, 4000))):
            memory = stage_demand(stage, model, MODELS, AMOUNTS, runtime, 32).memory
            assert memory is not None
            assert tuple(memory.parts.get(name, 0) for name in ("teacher", "weights")) == parts, stage.kind


def test_generation_gathers_a_student_whole_or_layer_by_layer():
    on_four = Runtime(zero_stage=3, processes=4, generation_batch_size=6)
    cache = 6 * 32 * 4 * 2 * 16
    for runtime, gathered in ((on_four, 750), (on_four.model_copy(update={"gather_student": False}), 600 + 30 * 8)):
        assert training_memory(MODEL, None, on_text(), runtime, 32, 8).parts["caches"] == cache + 4 * gathered


def test_memory_by_its_parts():
    memory = training_memory(MODEL, LARGE, on_rollouts(), Runtime(micro_batch_size=2, generation_batch_size=6), 32, 8)
    caches = 6 * 32 * 4 * 2 * (16 + 32)  # 6 rows, 2 layers, both models
    activations = 64 * 8 * 4 * 17 * 2 + 3 * 4 * 64 * 30
    assert memory.parts == {
        "weights": 4000,
        "gradients": 4000,
        "optimizer": 8000,
        "teacher": 16000,
        "activations": activations,
        "caches": caches,
        "rollouts": 8 * 8 * 16 * 4,
    }
    assert memory.total == LIBRARIES + 32000 + 8 * 8 * 16 * 4 + max(caches, activations)
    wide, narrow = (
        training_memory(MODEL, LARGE, on_rollouts(), Runtime(micro_batch_tokens=tokens, generation_batch_size=6), 32, 8)
        for tokens in (64, 10)
    )
    assert wide == memory
    assert narrow.parts["activations"] == 32 * 8 * 4 * 17 * 2 + 3 * 4 * 32 * 30, "the longest row goes alone"
    adapted = training_memory(MODEL, None, on_text(lora=Lora(rank=2)), Runtime(), 32, 8).parts
    assert (adapted["weights"], adapted["gradients"], adapted["optimizer"]) == (4000, 2 * 100 * 4, 2 * 100 * 8)
    lighter = training_memory(MODEL, None, on_text(gradient_checkpointing=True), Runtime(micro_batch_size=2), 32, 8)
    assert lighter.parts["activations"] == 64 * 8 * 4 * (17 + 2) + 3 * 4 * 64 * 30
    assert (
        training_memory(MODEL, None, on_text(precision="bfloat16"), Runtime(), 32, 8).parts["optimizer"]
        == 1000 * ADAM["bfloat16"]
    )


@pytest.mark.parametrize(("form", "weights"), [("live", 4000), ("hidden", 16 * 30), ("top", 0), ("sampled", 0)])
def test_a_teacher_that_left_its_knowledge_takes_no_memory(form: str, weights: int):
    method = on_text("forward_kl", teacher=form)
    assert training_memory(MODEL, LARGE, method, Runtime(), 32, 8).parts["teacher"] == 4 * weights


def test_the_teachers_knowledge_takes_disk_by_its_form():
    hidden, top = StoreKnowledge(precision="float32"), StoreKnowledge(top=Top(k=3), precision="float32")
    found = [stage_demand(stage, "teacher", MODELS, AMOUNTS, Runtime(), 32) for stage in (hidden, top)]
    assert [of.disk for of in found] == [40 * 8 * 16 * 4, 40 * 8 * (3 * 4 + 12)]
    assert found[0].work.scored == {"teacher": 40 * 20}


def estimate(model: ModelFacts, runtime: Runtime, label: str = "train sft") -> StageEstimate:
    memory = training_memory(model, None, on_text(), runtime, 32, 8)
    demand = Demand(Work(), memory, training_disk(model, on_text()))
    return StageEstimate(label, train(on_text()), "student", frozenset(), demand)


def test_what_cannot_fit_is_refused_with_the_knob(tmp_path: Path):
    huge = MODEL.model_copy(update={"parameters": 10**13})
    with pytest.raises(
        StageError, match=r"train sft needs .* TiB in each process \(weights .*: set runtime.zero_stage: 1"
    ):
        require_fit([estimate(huge, Runtime())], Runtime(), 1, tmp_path)
    teacher = LARGE.model_copy(update={"parameters": 10**13})
    memory = training_memory(MODEL, teacher, on_text("forward_kl"), Runtime(), 32, 8)
    demand = Demand(Work(), memory)
    kd = StageEstimate("train kd", train(on_text("forward_kl")), "student", frozenset(), demand)
    with pytest.raises(StageError, match=r"train kd needs .* set runtime\.teacher_zero_stage: 3 and more"):
        require_fit([kd], Runtime(), 1, tmp_path)
    wide = MODEL.model_copy(update={"width": 10**9})
    with pytest.raises(StageError, match=r"lower runtime\.micro_batch_size"):
        require_fit([estimate(wide, Runtime())], Runtime(), 1, tmp_path)


@pytest.mark.parametrize(
    ("stage", "model", "remedy"),
    [
        (GENERATE, "student", "take a smaller student, or set evaluation.precision: bfloat16"),
        (GENERATE.model_copy(update={"precision": "bfloat16"}), "student", "take a smaller student"),
        (
            StoreKnowledge(precision="float32"),
            "teacher",
            "set runtime.teacher_zero_stage: 3 and more runtime.processes or teacher_offload: cpu, or take a smaller "
            "teacher, or set teacher.knowledge.precision: bfloat16",
        ),
        (
            Cost(roles=("teacher", "sft"), benchmark="dolly", generate=GENERATE),
            "teacher",
            "set runtime.teacher_zero_stage: 3 and teacher_offload: cpu, or take a smaller teacher, or set "
            "evaluation.precision: bfloat16",
        ),
        (ask(), "student", "take a smaller student, or set asking.precision: bfloat16"),
    ],
)
def test_the_remedy_of_a_model_that_is_only_run_is_one_that_helps(
    stage: Stage, model: str, remedy: str, tmp_path: Path
):
    vast = {**MODELS, model: MODEL.model_copy(update={"parameters": 10**13})}
    demand = stage_demand(stage, model, vast, AMOUNTS, Runtime(), 32)
    with pytest.raises(StageError) as refused:
        require_fit([StageEstimate("stage", stage, model, frozenset(), demand)], Runtime(), 1, tmp_path)
    assert str(refused.value).partition(": ")[2] == remedy


def test_the_documented_plan_of_a_large_teacher_is_the_arithmetic_of_today():
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    assert [table for table in tables() if table not in page] == []


def test_several_stages_that_fit_one_by_one_but_not_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = estimate(MODEL, Runtime())
    assert one.demand.memory is not None
    room = round(1.5 * one.demand.memory.total)
    monkeypatch.setattr("minillm.planning.stage_estimate._room", lambda processes: (room, "this machine has little"))
    both = [one, estimate(MODEL, Runtime(), "train kd")]
    assert require_fit(both, Runtime(), 1, tmp_path)
    with pytest.raises(StageError, match=r"train sft and train kd at once .* set runtime.parallel_stages: 1"):
        require_fit(both, Runtime(), 2, tmp_path)


def test_a_disk_that_is_too_small_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("minillm.planning.stage_estimate._room", lambda processes: (10**18, "this machine has much"))
    huge = MODEL.model_copy(update={"parameters": 10**13})
    with pytest.raises(StageError, match=r"models and the teacher's knowledge need .* TiB, but .*set runtime.store"):
        require_fit([estimate(huge, Runtime())], Runtime(), 1, tmp_path)


def test_stages_run_side_by_side_after_what_they_need():
    steps = [
        Step("teacher", 10, frozenset()),
        Step("initial", 4, frozenset()),
        Step("sft", 5, frozenset()),
        Step("minillm", 7, frozenset({"teacher", "initial"})),
        Step("report", 1, frozenset({"sft", "minillm"})),
    ]
    assert span(steps, 1) == 27
    assert span(steps, 2) == 18  # initial and sft beside the teacher, then minillm, then the report
    assert span([], 2) == 0


def test_trainings_that_differ_in_rates_alone_are_timed_once():
    assert same_speed(train(on_text())) == same_speed(train(on_text(learning_rate=1.0, steps=99), "seqkd"))
    assert len({same_speed(train(m)) for m in (on_text(), on_text("forward_kl"), on_rollouts())}) == 3
    assert same_speed(train(on_text("forward_kl"))) != same_speed(train(on_text("forward_kl", "top")))
    assert same_speed(train(on_text())) != same_speed(train(on_text(), "teacher"))


def machine(calls: float, operations: float, seconds_of: list[float]) -> Callable[[Size], float]:
    """A machine that takes seconds per call and per operation; what it takes is noted."""

    def action(size: Size) -> float:
        seconds_of.append(calls * size.response + operations * size.rows * (size.prompt + size.response))
        return seconds_of[-1]

    return action


def effort(size: Size) -> Effort:
    return Effort(size.response, size.rows * (size.prompt + size.response))


def climbed(real: Size, share: float, calls: float = 0.01, operations: float = 0.001) -> tuple[list[Timed], float]:
    taken: list[float] = []
    pieces = climb(real, effort, machine(calls, operations, taken), lambda: sum(taken), share, 0.0)
    return pieces, sum(taken)


def test_pieces_grow_until_the_next_would_exceed_the_share():
    real = Size(64, 200, 100)
    assert steps_up_to(real)[:4] == [Size(1, 8, 4), Size(4, 8, 4), Size(16, 8, 4), Size(64, 8, 4)]
    assert steps_up_to(real)[-1] == real
    pieces, spent = climbed(real, share=5.0)
    assert 1.0 < spent <= 5.0
    assert max(piece.effort.operations for piece in pieces) < effort(real).operations


@pytest.mark.parametrize("share", [2.0, 5.0, 1000.0])
def test_a_line_through_small_pieces_tells_what_the_whole_takes(share: float):
    real = Size(64, 200, 100)
    pieces, _ = climbed(real, share)
    seconds = fit(pieces).at(effort(real))
    assert seconds.value == pytest.approx(100 * 0.01 + 64 * 300 * 0.001, rel=0.01)
    assert seconds.low < seconds.value < seconds.high


def test_an_estimate_is_surer_the_more_of_the_work_was_timed():
    real, widths = Size(64, 200, 100), []
    for share in (2.0, 20.0, 1000.0):
        seconds = fit(climbed(real, share)[0]).at(effort(real))
        widths.append(seconds.high / seconds.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx((1 + MARGIN) ** 2)


def test_work_whose_smallest_piece_exceeds_the_share_is_not_begun():
    taken: list[float] = []
    assert climb(Size(4, 8, 8), effort, machine(1.0, 1.0, taken), lambda: sum(taken), 1.0, first_seconds=2.0) == []
    assert taken == []


def test_a_budget_is_divided_among_what_is_left_to_measure(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("minillm.planning.extrapolation.time.monotonic", lambda: now)
    budget = Budget(30.0, 3)
    assert budget.share() == 10.0
    now = 102.0  # took less, so the others get more
    assert budget.share() == 14.0
    now = 140.0
    assert (budget.share(), budget.left) == (0.0, 0.0)


def test_micro_batches_are_as_wide_as_their_longest_rows():
    prompts, responses = np.array([2, 4, 6, 8]), np.full(4, 5)
    lengths = RowLengths(prompts, responses, responses)
    micro = mean_micro_batch(lengths, 400, Limit(rows=100), processes=1)
    assert (micro.count, micro.response, micro.tokens) == (4, 5.0, 5.0)
    assert micro.prompt == pytest.approx(5.0, abs=1.5), "sorted, each is of one length and a few of the next"
    assert mean_micro_batch(lengths, 400, Limit(rows=400), processes=1).prompt == 8.0
    # About 100 rows each of 7, 9, 11 and 13 tokens, of which 18, 14, 11 and 10 go into a micro-batch.
    by_tokens = mean_micro_batch(lengths, 400, Limit(tokens=130), processes=1)
    assert by_tokens.count * by_tokens.rows == pytest.approx(400)
    assert by_tokens.count == pytest.approx(100 / 18 + 100 / 14 + 100 / 11 + 100 / 10, abs=1.5)
    assert mean_longest(np.array([1, 9]), rows=50) == 9.0


def line(call: float, operation: float = 0.0) -> dict[str, float]:
    return asdict(Line(call, operation, 0.1, 1.0))


def test_seconds_are_counts_times_measurements():
    stage = train(on_rollouts())
    micro = asdict(MicroBatch(1, 4, 12, 8, 8))
    measured = {"line": line(2.0), "step": asdict(Effort(1, 0)), "update_seconds": 0.5, "engine_seconds": 1.0}
    measured |= {"micro_batch": micro, "rows": 8, "longest": 10.0}
    model = {"scoring": line(0.25), "generating": line(0.1), "rows": 4, "longest": 10.0}
    speeds = [
        {
            "start_seconds": start,
            "training_start_seconds": start,
            "load_seconds": {"teacher": 1.0, "student": 1.0},
            "trainings": {same_speed(stage): measured},
            "models": {"teacher.float32": model, "student.float32": model},
            "rouge_seconds": 0.1,
            "disk_bytes_per_second": 4000.0,
        }
        for start in (4.0, 6.0)
    ]
    work = stage_work(stage, "student")
    runtime = Runtime(micro_batch_size=3)
    speed = Speeds(mean_speed(speeds), MODELS, AMOUNTS, runtime, "float32", responses=0)
    # Start 5, engine 1, two models 1 each, 10 steps of 2 + 0.5; a checkpoint of 12 bytes for each of 1000 weights.
    begun = 5 + 1 + 2 + 10 * 2.5 + 3.0
    # A round: 10 tokens drawn, by the student 8 and by the teacher 2, and 2 micro-batches of 4 scored by each.
    rounds = 3 * (10 * 0.1 + 2 * 2 * 0.25)
    # A validation: 1 micro-batch of 3 scored, 3 responses of 10 tokens at most at once, Rouge-L, 4000 bytes written.
    validations = 3 * (0.25 + 10 * 0.1 + 3 * 0.1 + 1.0)
    seconds = speed.stage(stage, work)
    assert seconds.value == pytest.approx(begun + rounds + validations)
    assert seconds.low < seconds.value / 1.09 < seconds.value * 1.09 < seconds.high
    assert speed.was_timed(stage, work)
