"""The command `minillm` and its subcommands."""

import sys

from cli import chat, runs, servers, store, tracked
from cli.options import examples, new_app

app = new_app(add_completion=True)
app.add_typer(runs.app)
app.add_typer(tracked.app)
app.add_typer(store.app, name="store")
app.add_typer(chat.app)
app.add_typer(servers.app)


@app.callback(
    epilog=examples(
        ("minillm distill", "the whole pipeline in small, on the embedded corpus"),
        ("minillm ui", "its pages, and MLflow's"),
        ("minillm COMMAND --help", "options and examples of a command"),
    )
)
def minillm() -> None:
    """Distil language models on policy, evaluate them, and keep every run.

    Exit status: 0 when all is there, 1 when something failed, 2 when it cannot run as asked.
    """


def main(*command: str) -> None:
    """Run what the command line asks for, and exit with its status.

    Args:
        command: First words of the command, where the process was started by a name of its own for it.
    """
    app(args=[*command, *sys.argv[1:]], prog_name="minillm")
