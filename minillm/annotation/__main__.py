"""`python -m minillm.annotation`: show pairs of a run's answers to people, and write what they chose for its report."""

import typer

from minillm.annotation.command import AnnotateCommand, annotate

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(cls=AnnotateCommand)(annotate)
    app()
