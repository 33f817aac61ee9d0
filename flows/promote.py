"""The champion of an experiment: a finished run's student takes its place by merit alone, and gives it back on demand.

`python -m flows.promote --help` tells how to run it.
"""

import argparse
import sys

from prefect import State, flow

from minillm.errors import StageError
from tasks.promoting import PROMOTED, chosen_run, conclude_promotion, promote, roll_back
from tasks.serving.server import run_flow


@flow(name="promote")
def promote_run(run: str, experiment: str | None = None, method: str | None = None, store: str = ".minillm") -> State:
    """Make a finished run's student the champion if it beats the present one; otherwise say why not.

    Args:
        run: Its name or id in MLflow or Prefect, or the beginning of an id.
        experiment: Where it is looked for; in all unless one is named.
        method: Which student; without it, the one that the run's configuration says, or the best.
        store: `runtime.store` of the run.
    """
    outcome = promote(chosen_run(run, experiment, store), store, method, by_hand=True)
    return conclude_promotion(outcome)


def main() -> int:
    """Command line: 0 when promoted or rolled back, 1 when not, 2 when it is not clear what to promote."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.promote",
        description="Make a finished run's student the champion of its experiment if it beats the present one by a "
        "significant margin, or go back to the champion before.",
        epilog="0: promoted or rolled back; 1: not promoted, and why; 2: it is not clear what to promote",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run", nargs="?", metavar="RUN", help="name or id in MLflow or Prefect, or beginning of an id")
    what.add_argument("--rollback", metavar="NAME", help="the experiment whose former champion is to come back")
    parser.add_argument("--method", help="which student (default: as the run's configuration says, or the best)")
    parser.add_argument("--experiment", help="where the run is looked for (default: everywhere)")
    parser.add_argument("--store", default=".minillm", help="runtime.store of the runs (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.rollback is not None and (arguments.method or arguments.experiment):
        parser.error("--rollback goes back to the champion before, whatever its --method and --experiment")
    try:
        if arguments.rollback is not None:
            print(roll_back(arguments.rollback, arguments.store))
            return 0
        run = chosen_run(arguments.run, arguments.experiment, arguments.store)
    except StageError as error:
        print(error, file=sys.stderr)
        return 2
    state = run_flow(promote_run, run, None, arguments.method, arguments.store)
    return 0 if state.name == PROMOTED else 1


if __name__ == "__main__":
    sys.exit(main())
