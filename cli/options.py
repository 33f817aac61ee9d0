"""Parts that the commands share: options, the form of their help, and the exit status of a flow."""

from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tasks.environment.settings import refusing

if TYPE_CHECKING:
    from prefect import State

STORE = ".minillm"

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one field of the file, whatever its depth. May be repeated."
    ),
]
Store = Annotated[str, typer.Option(metavar="FOLDER", help="runtime.store of the runs.")]
Experiment = Annotated[
    str | None, typer.Option(metavar="NAME", help="Experiment that the runs are looked for in, instead of everywhere.")
]


class Commands(TyperGroup):
    """Group of commands that wrong settings and bad input end with a message and status 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        with refusing():
            return super().invoke(ctx)


def new_app(add_completion: bool = False) -> typer.Typer:
    """Return an app whose help and errors are plain text, and whose tracebacks are Python's."""
    return typer.Typer(
        cls=Commands,
        add_completion=add_completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def examples(*lines: tuple[str, str]) -> str:
    """Return the end of a command's help.

    Args:
        lines: A command and what it does, each.
    """
    width = max(len(command) for command, _ in lines)
    return "\n".join(["\b", "Examples:", *(f"  {command:<{width}}  {does}" for command, does in lines)])


def end(state: "State") -> NoReturn:
    """Exit with 0 where a flow has completed, otherwise with 1."""
    raise typer.Exit(0 if state.is_completed() else 1)
