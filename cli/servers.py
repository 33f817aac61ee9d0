"""Commands that serve until Ctrl-C: annotate, ui, serve."""

from typing import NoReturn

import typer

from cli.options import STORE, Store, examples, new_app
from minillm.annotation.command import AnnotateCommand, annotate

app = new_app()


app.command(
    cls=AnnotateCommand,
    epilog=examples(
        ("minillm annotate", "the newest run, its compared method against the first other"),
        ("minillm annotate --against sft teacher --prompts 100", "two others, more prompts"),
        ("minillm annotate --export judgements.csv", "write what was chosen"),
    ),
)(annotate)


@app.command(
    epilog=examples(
        ("minillm ui", "Prefect on port 4200, MLflow on port 5000"),
        ("MINILLM_MLFLOW_UI=http://127.0.0.1:5050 minillm ui", "MLflow elsewhere"),
    )
)
def ui(store: Store = STORE) -> None:
    """Serve Prefect's and MLflow's pages until Ctrl-C.

    They show every run of the store, those under way too. MINILLM_PREFECT_UI and MINILLM_MLFLOW_UI change their
    addresses, for runs and pages alike. Databases other than SQLite: docs/production.md.
    """
    _serve(store, worker=False)


@app.command(
    epilog=examples(
        ("minillm serve", "deployments of prefect.yaml, their schedules, and what is started in the page"),
    )
)
def serve(store: Store = STORE) -> None:
    """Serve the pages, and run deployments and schedules.

    Deploys prefect.yaml first, and runs what is scheduled or started in Prefect's page.
    """
    _serve(store, worker=True)


def _serve(store: str, worker: bool) -> NoReturn:
    from tasks.serving.ui import serve

    raise typer.Exit(serve(store, worker))
