"""Tracked runs against each other: what differs in configuration, data and code, in scores, and in training.

`minillm compare --help` tells how to run it.
"""

from prefect import State, flow

from tasks.comparing import find_runs, publish, read_runs, write_comparison


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


if __name__ == "__main__":
    from cli.app import main

    main("compare")
