"""The main flow: filter, fine-tune the teacher and the student, distil by every method, evaluate, report.

`python -m flows.distill --help` tells how to run it.
"""

import argparse
import sys
from typing import Any

from prefect import State, flow
from prefect.futures import PrefectFuture

from minillm.config import Config
from minillm.config.loading import load_config
from minillm.errors import ConfigError, StageError
from tasks.data import filter_examples, pack_plain_text, prepare
from tasks.evaluation import evaluate
from tasks.evaluation_sets import read_evaluation_sets
from tasks.promoting import propose
from tasks.reporting import conclude, export_model, report
from tasks.running.session import require_store, tracked
from tasks.serving.server import run_flow
from tasks.tracking.connection import preload
from tasks.training import distil, fine_tune_initial_student, fine_tune_teacher, needs, teacher_responses


@flow(name="distill")
def distill(config_file: str = "configs/quickstart.yaml", overrides: tuple[str, ...] = ()) -> State:
    """Distil a teacher into a student by each method of a configuration, and compare them.

    Args:
        config_file: YAML file; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the file.
    """
    config = load_config(config_file, overrides)
    with tracked(config) as session:
        ended = conclude(session, config, *stages(config))
    return propose(session, config, ended)


def stages(config: Config) -> tuple[PrefectFuture[Any], dict[str, PrefectFuture[Any]]]:
    """Start every stage; the futures of the report and of the exported students."""
    prepared = prepare.submit(config)
    sets = read_evaluation_sets(config, dict.fromkeys(config.rows, prepared))
    # Nothing is trained before all that will be measured on has been read.
    examples = filter_examples.submit(config, prepared, sets.benchmarks, wait_for=sets.all)
    plain_text = pack_plain_text.submit(config, prepared)

    teacher = fine_tune_teacher.submit(config, prepared, examples)
    initial = fine_tune_initial_student.submit(config, prepared, examples)
    responses = teacher_responses.submit(config, prepared, examples, teacher)
    available = {"teacher": teacher, "initial": initial, "responses": responses, "plain_text": plain_text}
    students = {
        name: distil.submit(config, name, prepared, examples, **needs(method, **available))
        for name, method in config.methods.items()
    }

    models = {"teacher": teacher, **students}
    measured = evaluate(config, models, sets)
    results = report.submit(config, sets.benchmarks, sets.prompts, {**models, "initial": initial}, measured, examples)
    exports = {name: export_model.submit(config, name, model, examples, results) for name, model in students.items()}
    return results, exports


def main() -> int:
    """Command line: 0 when every stage is there, 1 when one failed, 2 when the configuration cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.distill", description="Distil, evaluate and report, from a configuration."
    )
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml", help="YAML file (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one field, e.g. --set methods.minillm.training.learning_rate=1e-4; may be repeated",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="run nothing, but tell which stages are stored and what the others take: tokens, operations, memory, disk "
        "and, from a short measurement, time",
    )
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.set)
        if arguments.plan:
            from tasks.planning import plan  # imports PyTorch, which a run leaves to its workers

            print(plan(config, stages))
            return 0
        require_store(config)
    except (ConfigError, StageError) as error:
        print(error, file=sys.stderr)
        return 2
    preload()
    state = run_flow(distill, arguments.config, tuple(arguments.set))
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
