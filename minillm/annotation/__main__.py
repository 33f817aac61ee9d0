"""`python -m minillm.annotation`: show pairs of a run's answers to people, and export their choices for its report."""

import argparse
import contextlib
import errno
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from minillm.annotation.judgements import Judgement, Judgements, write_csv
from minillm.annotation.page import make_app
from minillm.annotation.pairs import FinishedRun, draw_pairs, mismatch, newest_report, read_report
from minillm.annotation.session import AnnotationSession
from minillm.errors import StageError
from minillm.files import local_path

HOST = "127.0.0.1"
STORE = Path(".minillm")
"""Default place of results (`runtime.store`)."""


def main() -> int:
    """Run the command line; return 0 when serving or writing has ended, 2 after an error."""
    arguments = _parser().parse_args()
    try:
        run = read_report(arguments.report or newest_report(STORE))
        judgements = Judgements(run.store / "preference.db")
        if arguments.export:
            return _export(run, judgements.all(), arguments.export)
        pairs = draw_pairs(
            run, arguments.method, arguments.against, arguments.benchmark, arguments.prompts, arguments.seed
        )
        return _serve(AnnotationSession(pairs, judgements), arguments.port)
    except StageError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m minillm.annotation", description="Let people compare answers of the methods of a finished run."
    )
    parser.add_argument(
        "report", nargs="?", type=local_path, help="report.html of the run (default: the newest one in .minillm)"
    )
    parser.add_argument("--method", help="method whose answers win or lose (default: the one that the report compares)")
    parser.add_argument(
        "--against",
        nargs="+",
        default=(),
        metavar="METHOD",
        help="methods compared with it (default: the first other student)",
    )
    parser.add_argument("--benchmark", help="default: self_inst, as in the paper, or else the first")
    parser.add_argument(
        "--prompts", type=_count, default=60, help="number of prompts, drawn at random (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=_seed, default=1, help="seed of the prompts drawn and of their order (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=4400, help="port to serve on; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--export", type=local_path, metavar="FILE", help="write the judgements of this run as CSV and exit"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of prompts, 1 or more")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed, a whole number from 0 to {(1 << 32) - 1}")
    return int(text)


def _serve(session: AnnotationSession, port: int) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "another program uses it" if taken else str(error)
        raise StageError(f"port {port} of {HOST} cannot be used: {reason}; choose another with --port") from error
    pairs = [pair.compared for pair in session.pairs]
    others = ", ".join(sorted({pair.other for pair in pairs}))
    print(f"{len(pairs)} pairs of answers to {pairs[0].benchmark}: {pairs[0].method} against {others}")
    print(f"Choices are kept in {session.judgements.path}")
    print(f"http://{HOST}:{listening.getsockname()[1]} — Ctrl-C stops it", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C
    server = uvicorn.Server(uvicorn.Config(make_app(session), log_level="warning", timeout_graceful_shutdown=2))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    counts = ", ".join(f"{annotator} {len(judged)}" for annotator, judged in session.judged().items())
    print(f"\nJudged: {counts or 'none'}. --export FILE writes the choices.")
    return 0


def _export(run: FinishedRun, judgements: Sequence[Judgement], path: Path) -> int:
    """Write the judgements of all answers of this run, however they were drawn."""
    own = [judgement for judgement in judgements if mismatch(judgement, run.responses) is None]
    if not own:
        raise StageError(f"nobody has judged answers of this run yet, so {path} is not written")
    write_csv(path, own)
    print(f"{path}: {len(own)} judgements by {', '.join(sorted({judgement.annotator for judgement in own}))}")
    print(f"For the report, run its configuration again with --set evaluation.preference.path={path.resolve()}")
    return 0

from minillm.annotation.command import AnnotateCommand, annotate

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(cls=AnnotateCommand)(annotate)
    app()
