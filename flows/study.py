"""A study: variants of one configuration, each distilled with several seeds, and how they differ.

`python -m flows.study --help` tells how to run it.
"""

import argparse
import sys

from prefect import State, flow

from flows.distill import distill
from minillm.config.loading import load_study
from minillm.errors import ConfigError, StageError
from tasks.running.session import require_store, tracked
from tasks.serving.server import run_flow
from tasks.studying import compare_variants, conclude_study, finished, start_runs
from tasks.tracking.connection import preload


@flow(name="study")
def study(study_file: str = "configs/ablation.yaml", overrides: tuple[str, ...] = ()) -> State:
    """Distil every variant of a configuration with every seed, each in a run of its own, and compare them.

    Args:
        study_file: YAML file of the study; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the study's own fields.
    """
    plan = load_study(study_file, overrides)
    with tracked(plan, plan.parallel_runs) as session:
        runs = start_runs(distill, plan)
        results = compare_variants.submit(plan, finished(runs))
        return conclude_study(session, plan, results)


def main() -> int:
    """Command line: 0 when every run ended well, 1 when one failed, 2 when the study cannot run."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.study", description="Variants of one configuration over training seeds, compared."
    )
    parser.add_argument("study", nargs="?", default="configs/ablation.yaml", help="YAML file (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one field of the study, e.g. --set seeds=[1,2] or --set runtime.store=PATH; may be repeated",
    )
    arguments = parser.parse_args()
    try:
        require_store(load_study(arguments.study, arguments.set))
    except (ConfigError, StageError) as error:
        print(error, file=sys.stderr)
        return 2
    preload()
    state = run_flow(study, arguments.study, tuple(arguments.set))
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
