"""Prefect's pages of a stage while it runs: its progress and a link to its tracked run."""

import contextvars
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from minillm.redaction import redacted, without_known_secrets
from minillm.store.manifest import Artifact
from tasks.running.reached import MetricsFollower
from tasks.tracking.outbox import Outbox

EVERY_SECONDS = 5.0
LAST_SECONDS = 5.0
"""Longest time that a stage waits for its page when it has ended."""
LINK_SECONDS = 30.0
"""Longest time after the stage's end that its link to MLflow is waited for, which delays nothing."""
LOGGER = logging.getLogger("prefect.pages")


class StagePage:
    """Prefect artifacts of one attempt at a stage, kept up to date while it runs.

    They are written in the background, so a server that is slow or gone neither delays the stage nor fails it.
    """

    def __init__(self, metrics: Path, outbox: Outbox, record: str, label: str) -> None:
        self._follower, self._outbox, self._record, self._label = MetricsFollower(metrics), outbox, record, label
        self._progress: UUID | None = None
        self._linked = False
        self._ended, self._shown = threading.Event(), threading.Event()
        here = contextvars.copy_context()  # so that Prefect knows whose artifacts they are
        self._thread = threading.Thread(target=here.run, args=(self._follow,), name=f"page of {label}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._shown.wait(LAST_SECONDS)

    def _follow(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._update(self._show_progress, self._show_link)
        self._update(self._show_progress, self._show_link)
        self._shown.set()
        until = time.monotonic() + LINK_SECONDS  # a short stage ends before MLflow has told where its run is
        while not self._linked and time.monotonic() < until:
            time.sleep(EVERY_SECONDS)
            self._update(self._show_link)  # alone: another attempt may have a page of its own by now

    def _update(self, *shows: Callable[[], None]) -> None:
        try:
            for show in shows:
                show()
        except Exception as error:
            LOGGER.debug("Prefect's page of %s: %s", self._label, error)

    def _show_progress(self) -> None:
        reached = self._follower.read()
        if reached is None:
            return
        percentage = 100 * reached.share
        if self._progress is None:
            created = create_progress_artifact(percentage, page_key(f"progress {self._label}"), self._label)
            self._progress = cast(UUID, created)  # typed for callers in an event loop, too
        else:
            update_progress_artifact(self._progress, percentage)

    def _show_link(self) -> None:
        url = self._outbox.delivered(self._record).url
        if url is not None and not self._linked:
            create_link_artifact(redacted(url), f"{self._label} in MLflow", page_key(f"mlflow {self._label}"))
            self._linked = True


def show_page(markdown: str, words: str, description: str) -> None:
    """Show a page in Prefect. It stands elsewhere too, so a server that is gone fails nothing.

    Args:
        markdown: The page. Other people's texts in it are shown as they are, except for secrets of this process.
        words: Words for the key of the page.
        description: Heading of the page.
    """
    try:
        create_markdown_artifact(without_known_secrets(markdown), page_key(words), redacted(description))
    except httpx.HTTPError as error:
        LOGGER.warning("Prefect does not show %r: %s", description, error)


def show_texts(artifact: Artifact, label: str) -> None:
    """Show an artifact's Markdown files (the table of dropped rows, the report, a model's card) as pages."""
    for path in sorted(Path(artifact.path).glob("*.md")):
        show_page(path.read_text(encoding="utf-8"), label, f"{label}: {path.name}")


def page_key(words: str) -> str:
    """Return words as a key that Prefect accepts: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
