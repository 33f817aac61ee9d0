"""Commands about the store: what is there, whether it is whole, and room for more."""

from typing import Annotated

import typer

from cli.options import STORE, Store, examples, new_app

Here = Annotated[str | None, typer.Option("--store", metavar="FOLDER", help="The same, behind the command.")]

app = new_app()


@app.callback(
    epilog=examples(
        ("minillm store ls", "what is there"),
        ("minillm store gc --dry-run", "what would be removed"),
        ("minillm store --store /data/runs verify", "another store"),
    )
)
def choose(context: typer.Context, store: Store = STORE) -> None:
    """List, verify and clean the store.

    Exit status: 0 when all is well, 1 when something is altered, 2 when it cannot be told.
    """
    context.obj = store


@app.command("ls", epilog=examples(("minillm store ls", "oldest first")))
def show(context: typer.Context, store: Here = None) -> None:
    """Tell what is there: size, age, what made it and which runs use it."""
    from tasks.store import listing

    print(listing(store or context.obj))


@app.command(epilog=examples(("minillm store verify", "every file; exit status 1 where one is altered")))
def verify(context: typer.Context, store: Here = None) -> None:
    """Compare every file with its checksum."""
    from tasks.store import altered

    names = altered(store or context.obj)
    for name in names:
        print(f"{name}: files missing or altered; the next run that needs it computes it again")
    print(f"{len(names)} altered" if names else "every file is as its manifest says")
    raise typer.Exit(1 if names else 0)


@app.command(
    "gc",
    epilog=examples(
        ("minillm store gc --dry-run", "first only tell"),
        ("minillm store gc", "then remove"),
    ),
)
def clean(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be removed.")] = False,
    store: Here = None,
) -> None:
    """Remove what no run in MLflow needs; delete runs there first."""
    from humanize import naturalsize

    from tasks.store import collect

    removed = collect(store or context.obj, dry_run)
    for entry in removed:
        print(f"{entry.name:<40} {naturalsize(entry.bytes)}")
    words = "would be removed" if dry_run else "removed"
    print(f"{len(removed)} {words}, {naturalsize(sum(entry.bytes for entry in removed))}")
