"""What the tracked runs need of a store, and the commands that list it, verify it and free what no run needs."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from humanize import naturalsize
from tabulate import tabulate

from minillm.errors import StageError
from minillm.files import local_path
from minillm.store.artifacts import Store
from minillm.store.inventory import Entry, entries, look, remove, sweep, with_inputs
from tasks.environment.settings import set_mlflow_defaults
from tasks.tracking.database import DATABASE
from tasks.tracking.outbox import lives, records, uses_elsewhere
from tasks.tracking.records import STORE, Record, server_in_use
from tasks.tracking.tags import KEY_TAG, PARENT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

AT_ONCE = 100
"""Entries locked at a time, far below the number of files that a process may open."""


def users(store: Store) -> dict[str, set[str]]:
    """Names of the flow runs that use each key: those that MLflow has and that were not deleted there.

    What MLflow has not been told yet counts too, stages of running flows among them, and so do what it refused and
    what other servers were told.

    Raises:
        StageError: MLflow does not answer, or a record of what it is to be told cannot be read.
    """
    tracking = store.root / "tracking"
    waiting = {record.id: record for record in records(tracking)}
    uses = [(r.wanted.key, _flow_name(r, waiting)) for r in waiting.values() if r.wanted.key is not None]
    for server, keys in uses_elsewhere(tracking).items():
        uses += [(key, f"{name} on {server}") for key, name in keys.items()]
    found: dict[str, set[str]] = {}
    for key, name in itertools.chain(uses, _tracked(store)):
        found.setdefault(key, set()).add(name)
    return found


def _flow_name(record: Record, waiting: Mapping[str, Record]) -> str:
    parent = record.wanted.parent or record.id
    return waiting[parent].wanted.name if parent in waiting else parent


def _tracked(store: Store) -> Iterator[tuple[str, str]]:
    """Key of each stage that a flow run in MLflow has, and the flow run's name; champions, present and former, too.

    Where the runs go to a server, those in the store's own database count as well.
    """
    set_mlflow_defaults()
    from tasks.tracking.client import answering, connect, connect_database

    with answering():
        yield from _in_use(connect(store.root))
        if server_in_use() != STORE and (store.root / DATABASE).exists():
            yield from _in_use(connect_database(store.root))


def _in_use(client: "MlflowClient") -> Iterator[tuple[str, str]]:
    from tasks.tracking.client import search_runs
    from tasks.tracking.registry import lineage, names_with_champion

    runs = search_runs(client, [experiment.experiment_id for experiment in client.search_experiments()])
    names = {run.info.run_id: run.info.run_name or run.info.run_id for run in runs}
    for run in runs:
        # deleting a flow run in MLflow leaves the runs of its stages, which then count no more; those of a flow run
        # that MLflow refused stand alone
        around = run.data.tags.get(PARENT_TAG, run.info.run_id)
        if KEY_TAG in run.data.tags and around in names:
            yield run.data.tags[KEY_TAG], names[around]
    for name in names_with_champion(client):
        for version in lineage(client, name):
            yield version.tags[KEY_TAG], f"champion {version.version} of {name}"


def listing(root: str) -> str:
    """A table of what is there, oldest first."""
    store = _existing(root)
    found, used = entries(store), users(store)
    rows = [
        (
            entry.name,
            entry.role,
            naturalsize(entry.bytes),
            f"{entry.changed:%Y-%m-%d %H:%M}",
            entry.config,
            "" if entry.state == "finished" else entry.state,
            ", ".join(sorted(_users_of(entry, used, found))) or "no run",
        )
        for entry in found
    ]
    total = naturalsize(sum(entry.bytes for entry in found))
    table = tabulate(rows, ["artifact", "of", "size", "changed", "made for", "", "used by"], "simple")
    return "\n".join([table, "", f"{len(found)} entries, {total} in {store.root}", *_untold(store)])


def _untold(store: Store) -> Iterator[str]:
    """A paragraph of what MLflow has not got of runs that have ended, and what to do."""
    folder = store.root / "tracking"
    ended = [record for record in records(folder) if not lives(folder, record.owner)]
    if ended:
        yield "\nNot in MLflow; the next run sends it again, and to forget one, delete its file:"
    for record in ended:
        yield f"- {record.wanted.name}: {_why(record)} ({folder / record.id}.json)"


def _why(record: Record) -> str:
    if record.sent.server not in (None, server_in_use()):
        return f"its run is on {record.sent.server}: set MLFLOW_TRACKING_URI to that, and the next run sends the rest"
    return record.trouble or "not sent yet"


def _users_of(entry: Entry, used: Mapping[str, set[str]], found: list[Entry]) -> set[str]:
    """Runs that use an entry or something made from it."""
    return {name for key, names in used.items() if _among(entry, with_inputs([key], found)) for name in names}


def altered(root: str) -> list[str]:
    """Names of finished artifacts that have a file missing or other than their manifest says."""
    store = _existing(root)
    artifacts = [entry for entry in entries(store) if entry.path.parent.name == "artifacts"]
    return [entry.name for entry in artifacts if entry.state == "damaged" or store.find(entry.kind, entry.key) is None]


def collect(root: str, dry_run: bool) -> list[Entry]:
    """Remove what no tracked run needs, and work that none will continue; what a running flow holds is left alone.

    Args:
        root: Of the store.
        dry_run: Only tell.

    Returns:
        What was, or would be, removed.

    Raises:
        StageError: There are artifacts, but not one belongs to a run of this MLflow.
    """
    store = _existing(root)
    found, used = entries(store), users(store)
    needed = with_inputs(used, found)
    unused = [entry for entry in found if entry.state == "left over" or not _among(entry, needed)]
    wanted_once = [entry for entry in found if entry.state != "left over"]
    if wanted_once and not any(_among(entry, needed) for entry in wanted_once):
        raise StageError(
            f"no run in MLflow uses anything of {store.root}, which would empty it; is MLFLOW_TRACKING_URI the server "
            "that its runs are on? To start over, delete the folder"
        )
    if dry_run:
        return unused
    sweep(store)
    removed = []
    for start in range(0, len(unused), AT_ONCE):
        with contextlib.ExitStack() as locks:
            # A flow takes the lock of what it is about to use and then says so: asked under the locks, MLflow and the
            # outbox know of every use there is.
            held = [entry for entry in unused[start : start + AT_ONCE] if _acquired(store.lock(entry.key), locks)]
            needed = with_inputs(users(store), found)
            now = [entry for entry in (look(entry.path, store) for entry in held) if entry is not None]
            doomed = [entry for entry in now if entry.state == "left over" or not _among(entry, needed)]
            for entry in doomed:
                remove(entry)
            removed += doomed
    return removed


def _among(entry: Entry, keys: Iterable[str]) -> bool:
    return any(key.startswith(entry.key) for key in keys)


def _acquired(lock: FileLock, locks: contextlib.ExitStack) -> bool:
    try:
        locks.enter_context(lock.acquire(timeout=0))
    except Timeout:
        return False
    return True


def _existing(root: str) -> Store:
    path = local_path(root).resolve()
    if not (path / "artifacts").is_dir():
        raise StageError(f"{path} is no store: it has no folder `artifacts`; name another by --store")
    return Store(path)
