"""Commands that run a flow from a configuration: distill, plan, evaluate, study, system2, pretrain."""

from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cli.options import Overrides, end, examples, new_app

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect import Flow, State

    from minillm.config import Tracked

QUICKSTART = "configs/quickstart.yaml"
EMBEDDED = "configs/evaluation-embedded.yaml"
ABLATION = "configs/ablation.yaml"
SYSTEM2 = "configs/system2.yaml"
PRETRAIN = "configs/pretrain.yaml"
RATE = "--set methods.minillm.training.learning_rate=5e-4"

Plan = Annotated[bool, typer.Option("--plan", help="Run nothing: tell what it would take, as `minillm plan` does.")]
Configuration = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file.")]

app = new_app()


@app.command(
    epilog=examples(
        ("minillm distill", "the quickstart, on the embedded corpus"),
        ("minillm distill configs/gpt2-base.yaml", "the paper's GPT-2, from the hub, on GPUs"),
        (f"minillm distill {RATE}", "one field changed"),
        ("minillm distill configs/gpt2-base.yaml --plan", "what it would take"),
    )
)
def distill(
    config: Configuration = QUICKSTART,
    overrides: Overrides = None,
    plan: Plan = False,
) -> None:
    """Distil a teacher by every method, evaluate and report.

    Filters the data, fine-tunes the teacher and the student, distils, measures, and writes a page with everything.
    What is in the store already is not computed again: after a failure, the same command goes on from there.
    """
    if plan:
        show_plan(config, overrides)
        return
    from minillm.config.loading import load_config

    loaded = load_config(config, overrides or ())
    import flows.distill

    _start(loaded, flows.distill.distill, config, tuple(overrides or ()))


@app.command(
    "plan",
    epilog=examples(
        ("minillm plan configs/gpt2-base.yaml", "before the night"),
        (f"minillm plan {RATE}", "what one changed field would compute anew"),
    ),
)
def show_plan(config: Configuration = QUICKSTART, overrides: Overrides = None) -> None:
    """Tell what a distillation would take.

    Which stages are stored, and of the others tokens, operations, memory, disk and, from a short measurement, time.
    Some rows as they are learnt and, from some answers of teacher and student, whether it will probably help.
    Nothing is run but what reads data.
    """
    from minillm.config.loading import load_config

    loaded = load_config(config, overrides or ())
    import flows.distill

    _show_plan(loaded, flows.distill.stages)


@app.command(
    epilog=examples(
        ("minillm evaluate gpt2 mine=models/mine", "a hub name and a directory, side by side"),
        ("minillm evaluate gpt2 --config configs/evaluation.yaml", "on the benchmarks of the paper"),
        ("minillm evaluate gpt2 --set evaluation.temperature=0.7", "one field changed"),
    )
)
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Hub name (gpt2) or directory (models/mine), as NAME=MODEL to name its row. The others are measured "
            "against the first. Without any, those of the file.",
        ),
    ] = None,
    config: Annotated[str, typer.Option(metavar="FILE", help="YAML file.")] = EMBEDDED,
    overrides: Overrides = None,
) -> None:
    """Evaluate models that are there already, and report."""
    from minillm.config.loading import load_evaluation

    loaded = load_evaluation(config, models or (), overrides or ())
    import flows.evaluation

    _start(loaded, flows.evaluation.evaluate_models, tuple(models or ()), config, tuple(overrides or ()))


@app.command(
    epilog=examples(
        ("minillm study", "the ablations of the paper's Table 4, on the quickstart"),
        ("minillm study configs/alpha-sweep.yaml", "how much of the teacher to mix in"),
        ("minillm study configs/ablation.yaml --set seeds=[1]", "one field of the study changed"),
    )
)
def study(
    file: Annotated[str, typer.Argument(metavar="STUDY", help="YAML file.")] = ABLATION, overrides: Overrides = None
) -> None:
    """Distil variants of a configuration over seeds, and compare.

    Each variant with each training seed is a run of its own; stages that runs have in common are computed once.
    """
    from minillm.config.loading import load_study

    loaded = load_study(file, overrides or ())
    import flows.study

    _start(loaded, flows.study.study, file, tuple(overrides or ()))


@app.command(
    epilog=examples(
        ("minillm system2", "small models that learn to answer at once"),
        ("minillm system2 configs/system2-gsm8k.yaml", "a chat model and word problems"),
        ("minillm system2 --set self_consistency.majority=0.75", "one field changed"),
        ("minillm system2 --plan", "what it would take"),
    )
)
def system2(config: Configuration = SYSTEM2, overrides: Overrides = None, plan: Plan = False) -> None:
    """Distil a model's slow answers into its fast ones.

    Asks step by step, keeps final answers that agree, trains the model to give them at once, and compares accuracy and
    tokens of System 1 before, System 2, and System 1 after.
    """
    from minillm.config.loading import load_system2

    loaded = load_system2(config, overrides or ())
    import flows.system2

    if plan:
        _show_plan(loaded, flows.system2.stages)
        return
    _start(loaded, flows.system2.system2, config, tuple(overrides or ()))


@app.command(
    epilog=examples(
        ("minillm pretrain", "small models, on the embedded corpus"),
        ("minillm pretrain configs/pretrain-wikitext.yaml", "a teacher from the hub"),
        ("minillm pretrain --set shares=[0.5,1]", "one field changed"),
        ("minillm pretrain --plan", "what it would take"),
    )
)
def pretrain(config: Configuration = PRETRAIN, overrides: Overrides = None, plan: Plan = False) -> None:
    """Pre-train students on a corpus that a teacher writes.

    The teacher writes text once and leaves its logits; students from random weights learn growing shares of it by each
    method, and perplexity on held-out text is compared by amount of data.
    """
    from minillm.config.loading import load_pretrain

    loaded = load_pretrain(config, overrides or ())
    import flows.pretrain

    if plan:
        _show_plan(loaded, flows.pretrain.stages)
        return
    _start(loaded, flows.pretrain.pretrain, config, tuple(overrides or ()))


def _show_plan(loaded: Any, stages: "Callable[[Any], Any]") -> None:
    """Print what a run would take."""
    from tasks.planning import plan

    print(plan(loaded, stages))


def _start(loaded: "Tracked", flow: "Flow[..., State]", *parameters: Any) -> NoReturn:
    """Run a flow to its end, if its results and tracked runs can be kept."""
    from tasks.running.session import require_store
    from tasks.serving.server import run_flow
    from tasks.tracking.connection import preload

    require_store(loaded)
    preload()
    end(run_flow(flow, *parameters))
