"""The command that lets people compare answers: its options, and what it starts."""

import itertools
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from minillm.errors import StageError
from minillm.files import local_path

STORE = Path(".minillm")
"""Default folder of results (`runtime.store`)."""
AGAINST = "--against"
LAST_SEED = (1 << 32) - 1


class AnnotateCommand(TyperCommand):
    """Takes several names behind one `--against`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its names."""
        repeated: list[str] = []
        after = False  # words behind the option, until another one begins
        for before, word in itertools.pairwise(["", *args]):
            after = before == AGAINST or (after and not word.startswith("-"))
            repeated += [AGAINST, word] if after and before != AGAINST else [word]
        return super().parse_args(ctx, repeated)


def annotate(
    report: Annotated[
        Path | None,
        typer.Argument(
            metavar="REPORT", parser=local_path, help="report.html of the run, instead of the last made in .minillm."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose answers win or lose, instead of the method that the report compares."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(AGAINST, metavar="METHOD...", help="The others, instead of the first student beside it."),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose prompts, instead of self_inst, as in the paper, or the first."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, metavar="COUNT", help="How many, drawn at random.")] = 60,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, metavar="SEED", help="For the prompts drawn and their order.")
    ] = 1,
    port: Annotated[int, typer.Option(metavar="PORT", help="Where the page is served; 0 for any that is free.")] = 4400,
    export: Annotated[
        Path | None,
        typer.Option(parser=local_path, metavar="FILE", help="Write the judgements of this run as CSV and end."),
    ] = None,
) -> None:
    """Let people compare the answers of a run's methods.

    Serves a page on this machine until Ctrl-C, or writes what was chosen there.

    Exit status: 0 at the end of the serving or writing, 2 with what is wrong.
    """
    from minillm.annotation import serving
    from minillm.annotation.judgements import Judgements
    from minillm.annotation.pairs import draw_pairs, newest_report, read_report
    from minillm.annotation.session import AnnotationSession

    try:
        run = read_report(report or newest_report(STORE))
        judgements = Judgements(run.store / "preference.db")
        if export is not None:
            serving.export(run, judgements.all(), export)
            return
        serving.serve(
            AnnotationSession(draw_pairs(run, method, against or (), benchmark, prompts, seed), judgements), port
        )
    except StageError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from error
