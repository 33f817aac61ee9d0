"""Tracked runs against each other: what differs in configuration, data and code, in scores, and in training.

`python -m flows.compare --help` tells how to run it.
"""

import argparse
import sys

from prefect import State, flow

from minillm.errors import StageError
from tasks.comparing import chosen_runs, find_runs, latest_runs, publish, read_runs, write_comparison
from tasks.serving.server import run_flow


@flow(name="compare")
def compare(
    runs: list[str], experiment: str | None = None, every_method: bool = False, store: str = ".minillm"
) -> State:
    """Compare runs of the main flow; the later ones with the first.

    Args:
        runs: Two or more, each by its name or id in MLflow or Prefect, or the beginning of an id.
        experiment: Where they are looked for; in all unless one is named.
        every_method: A row for each method of a run, not only for minillm or else its best student.
        store: `runtime.store` of the runs, where the comparison is kept.
    """
    found = find_runs(runs, experiment, store)
    read = read_runs(found, store)
    folder, words = write_comparison(read, every_method, store)
    return publish(read, folder, words, store)


def main() -> int:
    """Command line: 0 when the comparison is there, 1 when it failed, 2 when it is not clear what to compare."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.compare", description="Compare tracked runs; without one, list the latest."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="name or id in MLflow or Prefect, or beginning of an id")
    parser.add_argument("--experiment", help="where the runs are looked for (default: everywhere)")
    parser.add_argument("--methods", action="store_true", help="a row for each method, not only minillm or the best")
    parser.add_argument("--store", default=".minillm", help="runtime.store of the runs (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        if not arguments.runs:
            print(latest_runs(arguments.experiment, arguments.store))
            return 0
        found = chosen_runs(arguments.runs, arguments.experiment, arguments.store)
    except StageError as error:
        print(error, file=sys.stderr)
        return 2
    state = run_flow(compare, found, None, arguments.methods, arguments.store)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
