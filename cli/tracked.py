"""Commands about runs that have finished: compare, promote."""

from typing import Annotated

import typer

from cli.options import STORE, Experiment, Store, end, examples, new_app

app = new_app()


@app.command(
    epilog=examples(
        ("minillm compare", "list the latest runs"),
        ("minillm compare amber-fox 3f2a91c0", "what differs, in configuration, data, code, scores and curves"),
        ("minillm compare amber-fox 3f2a91c0 --methods", "every method of both"),
    )
)
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Name or id in MLflow or Prefect, or the beginning of an id."),
    ] = None,
    experiment: Experiment = None,
    methods: Annotated[
        bool, typer.Option("--methods", help="A row for each method, not only for minillm or the best.")
    ] = False,
    store: Store = STORE,
) -> None:
    """Compare tracked runs, or list the latest.

    The later ones are compared with the first.
    """
    import flows.compare
    from tasks.comparing import chosen_runs, latest_runs
    from tasks.serving.server import run_flow

    if not runs:
        print(latest_runs(experiment, store))
        return
    found = chosen_runs(runs, experiment, store)
    end(run_flow(flows.compare.compare, found, None, methods, store))


@app.command(
    epilog=examples(
        ("minillm promote amber-fox", "its student becomes the champion, or why not"),
        ("minillm promote amber-fox --method kd", "another of its students"),
        ("minillm promote --rollback quickstart", "the champion before comes back"),
    )
)
def promote(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Name or id in MLflow or Prefect, or the beginning of an id."),
    ] = None,
    rollback: Annotated[
        str | None, typer.Option(metavar="NAME", help="Experiment whose former champion is to come back.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which student, instead of the one that the run's configuration says."),
    ] = None,
    experiment: Experiment = None,
    store: Store = STORE,
) -> None:
    """Make a run's student champion, or bring the former back.

    It has to beat the present champion by a significant margin. Exit status: 0 when promoted or rolled back, 1 when
    not, and why, 2 when it is not clear what to promote.
    """
    if (run is None) == (rollback is None):
        raise typer.BadParameter("name one, or --rollback NAME, and not both", param_hint="RUN")
    if rollback is not None and (method or experiment):
        raise typer.BadParameter(
            "it goes back to the champion before, whatever its --method and --experiment", param_hint="--rollback"
        )
    import flows.promote
    from tasks.promoting import PROMOTED, chosen_run, roll_back
    from tasks.serving.server import run_flow

    if rollback is not None:
        print(roll_back(rollback, store))
        return
    assert run is not None
    chosen = chosen_run(run, experiment, store)
    state = run_flow(flows.promote.promote_run, chosen, None, method, store)
    raise typer.Exit(0 if state.name == PROMOTED else 1)
