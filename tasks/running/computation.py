"""Computation of a stage from its inputs: the key of the result, the lookup in the store, and the worker's run."""

import contextlib
import functools
import importlib.metadata
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from minillm.config import Model, Source, Tracked, WithData
from minillm.data.sources import Resolved, fingerprint, resolve
from minillm.errors import StageError
from minillm.files import read_json
from minillm.stages.base import Job, Stage
from minillm.store.artifacts import METRICS, Store, disk_full
from minillm.store.file_versions import Snapshot
from minillm.store.manifest import Artifact, Origin, Timings, text_digest
from minillm.store.source_digest import source_digest
from tasks.running.supervision import run_worker

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "deepspeed", "numpy", "pandas", "rouge-score")

SHOWN_FILES = 3
"""Most changed files named in a message."""

Input = Artifact | Source | Model
"""Input of a stage: the result of another stage, or a file, data set or model from outside."""


class Computation:
    """A stage of a configuration, ready to be looked up or computed."""

    def __init__(self, stage: Stage, inputs: Mapping[str, Input], config: Tracked, label: str, store: Store) -> None:
        """Resolve the inputs and take the key.

        Args:
            stage: Settings that decide the result.
            inputs: Inputs by the names that the stage declares.
            config: Settings of the run, which are kept with the result.
            label: Name of the stage in logs and pages, e.g. "train minillm".
            store: Store of the results.

        Raises:
            StageError: A source does not exist.
            ValueError: The stage reads other inputs.
        """
        stage.require_inputs(inputs)
        self.stage, self.config, self.label, self.store = stage, config, label, store
        self.artifacts = {name: value for name, value in inputs.items() if isinstance(value, Artifact)}
        self.sources = {
            name: (value, _resolve(value, config)) for name, value in inputs.items() if not isinstance(value, Artifact)
        }
        self._read = {name: Snapshot.take(Path(artifact.path)) for name, artifact in self.artifacts.items()}
        self._read |= {name: resolved.snapshot for name, (_, resolved) in self.sources.items()}
        self.origin = {
            "kind": stage.kind,
            "settings": stage.model_dump(mode="json"),
            "inputs": {name: artifact.digest for name, artifact in self.artifacts.items()},
            "sources": {name: resolved.fingerprint for name, (_, resolved) in self.sources.items()},
            "source_digest": source_digest(stage.module),
        }
        self.key = text_digest(self.origin)

    @property
    def paths(self) -> dict[str, Path]:
        """Paths of the inputs."""
        artifacts = {name: Path(artifact.path) for name, artifact in self.artifacts.items()}
        return artifacts | {name: resolved.path for name, (_, resolved) in self.sources.items()}

    def find(self) -> Artifact | None:
        """Return the result, if the store has it whole."""
        return self.store.find(self.stage.kind, self.key)

    @property
    def metrics(self) -> Path:
        """File of the worker's progress."""
        return self.work / "output" / METRICS

    def run(self, log: Callable[[str], None], stop: threading.Event, threads: int) -> float:
        """Run the worker to its end. The caller holds the key's lock.

        Args:
            log: Function that gets each line of the worker.
            stop: Event that ends the worker.
            threads: Threads of each of its processes.

        Returns:
            Start of the run on the monotonic clock, for `complete`.

        Raises:
            StageError: Bad input, or a full disk; retrying does not help.
            WorkerError: The worker died; another attempt continues from its last checkpoint.
            WorkerStoppedError: The worker was stopped.
        """
        runtime = self.config.runtime.model_copy(update={"threads": threads})
        if not self.stage.shares_work:
            runtime = runtime.model_copy(update={"processes": 1, "hostfile": None})
        started = time.monotonic()
        with _full_disk_named(self.store):
            work = self.store.begin(self._becomes())
            job = Job(
                kind=self.stage.kind,
                settings=self.stage,
                inputs=self.paths,
                output=work / "output",
                work=work,
                runtime=runtime,
            )
            try:
                run_worker(job, log, stop, sampled=self.stage.shares_work and runtime.hostfile is None)
            except BaseException:
                if self._written():  # the checkpoints may come from other inputs than the key's
                    self.store.abandon(self.stage.kind, self.key)
                raise
        return started

    def complete(self, started: float, attempt: int = 1) -> Artifact:
        """Put the worker's result into the store, unless an input has changed since the key was taken.

        Args:
            started: Value of `run`.
            attempt: Number of the attempt, which is kept with the result.

        Raises:
            StageError: The disk is full, or an input was written to since the key was taken. Nothing is stored.
        """
        seconds = time.monotonic() - started
        if written := self._written():
            self.store.abandon(self.stage.kind, self.key)
            names = ", ".join(map(str, written[:SHOWN_FILES])) + (" and others" if len(written) > SHOWN_FILES else "")
            raise StageError(
                f"{names} changed while {self.label!r} ran, so what it read is not known; nothing was stored. Run the "
                "same command again, and leave its files alone meanwhile"
            )
        with _full_disk_named(self.store):
            facts = {
                **dict(self._becomes()),
                "versions": versions(),
                "timings": Timings(started=time.time() - seconds, seconds=seconds, attempt=attempt),
                "summary": read_json(self.work / "summary.json"),
            }
            return self.store.complete(self.stage.kind, self.key, facts)

    @property
    def work(self) -> Path:
        """Folder that survives a failure, for checkpoints and finished parts. `run` makes it."""
        return self.store.work_path(self.stage.kind, self.key)

    def _becomes(self) -> Origin:
        taken_of = {name: self.origin[name] for name in ("kind", "settings", "sources", "source_digest")}
        config = self.config.model_dump(mode="json")
        return Origin(**taken_of, key=self.key, label=self.label, inputs=self.artifacts, config=config)

    def _written(self) -> list[Path]:
        """Return the inputs that differ from those of the key, or may have differed for a while.

        A file's bytes at the end do not say what it held in between, but its times do (see `FileVersion`). The bytes
        decide only if the times cannot: the file was written just before, or its attributes changed.
        """
        written = [file for snapshot in self._read.values() for file in snapshot.written()]
        for source, resolved in self.sources.values():
            local = source.hub is None  # other fingerprints are those of a commit
            if not written and local and not resolved.snapshot.certain:
                written += [resolved.path] if fingerprint(resolved.path) != resolved.fingerprint else []
        return written


@contextlib.contextmanager
def _full_disk_named(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_full(error, store.root) or error from error


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def _resolve(source: Source | Model, config: Tracked) -> Resolved:
    if isinstance(source, Source) and isinstance(config, WithData):
        return resolve(source, Path(config.data.directory))
    return resolve(source, Path())
