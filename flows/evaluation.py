"""Evaluation alone: the report of a distillation for any models, from the hub or from directories.

`python -m flows.evaluation --help` tells how to run it.
"""

import argparse
import sys

from prefect import State, flow

from minillm.config.loading import load_evaluation
from minillm.errors import ConfigError, StageError
from tasks.data import prepare_model
from tasks.evaluation import evaluate
from tasks.evaluation_sets import read_evaluation_sets
from tasks.reporting import conclude, report
from tasks.running.session import require_store, tracked
from tasks.serving.server import run_flow
from tasks.tracking.connection import preload

EMBEDDED = "configs/evaluation-embedded.yaml"


@flow(name="evaluate")
def evaluate_models(
    models: tuple[str, ...] = (), config_file: str = EMBEDDED, overrides: tuple[str, ...] = ()
) -> State:
    """Measure models side by side, each with its own tokenizer.

    Args:
        models: MODEL or NAME=MODEL each, MODEL being a hub name (gpt2) or a directory; without any, those of the file.
            The others are measured against the first.
        config_file: YAML file; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the file.
    """
    config = load_evaluation(config_file, models, overrides)
    with tracked(config) as session:
        tokenizers = {name: prepare_model.submit(config, name) for name in config.models}
        sets = read_evaluation_sets(config, tokenizers)
        measured = evaluate(config, config.models, sets)
        results = report.submit(config, sets.benchmarks, sets.prompts, config.models, measured)
        return conclude(session, config, results, {})


def main() -> int:
    """Command line: 0 when every stage is there, 1 when one failed, 2 when the configuration cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.evaluation", description="Evaluate models that are there already, and report."
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="hub name (gpt2) or directory (models/mine), as NAME=MODEL to name its row; the first is what the others "
        "are measured against (default: those of the file)",
    )
    parser.add_argument("--config", default=EMBEDDED, metavar="FILE", help="YAML file (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one field, e.g. --set evaluation.temperature=0.7; may be repeated",
    )
    arguments = parser.parse_args()
    try:
        require_store(load_evaluation(arguments.config, arguments.models, arguments.set))
    except (ConfigError, StageError) as error:
        print(error, file=sys.stderr)
        return 2
    preload()
    state = run_flow(evaluate_models, tuple(arguments.models), arguments.config, tuple(arguments.set))
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
