"""The champion of an experiment: a finished run's student takes its place by merit alone, and gives it back on demand.

`minillm promote --help` tells how to run it.
"""

from prefect import State, flow

from tasks.promoting import chosen_run, conclude_promotion, promote


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


if __name__ == "__main__":
    from cli.app import main

    main("promote")
