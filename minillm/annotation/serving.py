"""The page served until Ctrl-C, and what was chosen there written for a run's report."""

import contextlib
import errno
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from minillm.annotation.judgements import Judgement, write_csv
from minillm.annotation.page import make_app
from minillm.annotation.pairs import FinishedRun, mismatch
from minillm.annotation.session import AnnotationSession
from minillm.errors import StageError

HOST = "127.0.0.1"


def serve(session: AnnotationSession, port: int) -> None:
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    server = uvicorn.Server(uvicorn.Config(make_app(session), log_level="warning", timeout_graceful_shutdown=2))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    counts = ", ".join(f"{annotator} {len(judged)}" for annotator, judged in session.judged().items())
    print(f"\nJudged: {counts or 'none'}. --export FILE writes what was chosen.")


def export(run: FinishedRun, judgements: Sequence[Judgement], path: Path) -> None:
    """Write the judgements of all answers that are this run's, however they were drawn."""
    own = [judgement for judgement in judgements if mismatch(judgement, run.responses) is None]
    if not own:
        raise StageError(f"nobody has judged answers of this run yet, so {path} is not written")
    write_csv(path, own)
    print(f"{path}: {len(own)} judgements by {', '.join(sorted({judgement.annotator for judgement in own}))}")
    print(f"For the report, run its configuration again with --set evaluation.preference.path={path.resolve()}")
