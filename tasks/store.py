"""Commands that list a store, verify it and free what no tracked run needs."""

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
from tasks.tracking.entries import STORE, OutboxEntry, server_in_use
from tasks.tracking.outbox import lives, waiting_entries
from tasks.tracking.tags import KEY_TAG, PARENT_TAG
from tasks.tracking.uses import uses_elsewhere

if TYPE_CHECKING:
    from mlflow import MlflowClient

AT_ONCE = 100
"""Most entries locked at a time: far below the number of files that a process may open."""


def users(store: Store) -> dict[str, set[str]]:
    """Return the names of the flow runs that use each key: those that MLflow has and that were not deleted there.

    Records count too if they have not reached MLflow yet (such as stages of running flows), if MLflow refused them, or
    if they went to another server.

    Raises:
        StageError: If MLflow does not answer, or a record waiting for it cannot be read.
    """
    tracking = store.root / "tracking"
    waiting = {entry.id: entry for entry in waiting_entries(tracking)}
    uses = [(r.desired.key, _flow_name(r, waiting)) for r in waiting.values() if r.desired.key is not None]
    for server, keys in uses_elsewhere(tracking).items():
        uses += [(key, f"{name} on {server}") for key, name in keys.items()]
    found: dict[str, set[str]] = {}
    for key, name in itertools.chain(uses, _tracked(store)):
        found.setdefault(key, set()).add(name)
    return found


def _flow_name(record: OutboxEntry, waiting: Mapping[str, OutboxEntry]) -> str:
    parent = record.desired.parent or record.id
    return waiting[parent].desired.name if parent in waiting else parent


def _tracked(store: Store) -> Iterator[tuple[str, str]]:
    """Yield (key, flow run's name) for each stage that MLflow has, and for champions, present and former.

    If runs go to a server, those in the store's own database count as well.
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
        # Deleting a flow run in MLflow leaves the runs of its stages, which then no longer count. Stages of a flow run
        # that MLflow refused have no parent and count by themselves.
        parent = run.data.tags.get(PARENT_TAG, run.info.run_id)
        if KEY_TAG in run.data.tags and parent in names:
            yield run.data.tags[KEY_TAG], names[parent]
    for name in names_with_champion(client):
        for version in lineage(client, name):
            yield version.tags[KEY_TAG], f"champion {version.version} of {name}"


def listing(root: str) -> str:
    """Return a table of the store's entries, oldest first."""
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
    """Yield a paragraph on what MLflow lacks of runs that have ended, and what to do about it."""
    folder = store.root / "tracking"
    ended = [entry for entry in waiting_entries(folder) if not lives(folder, entry.owner)]
    if ended:
        yield "\nNot in MLflow. The next run sends it again; to forget an entry, delete its file:"
    for record in ended:
        yield f"- {record.desired.name}: {_why(record)} ({folder / record.id}.json)"


def _why(record: OutboxEntry) -> str:
    if record.delivered.server not in (None, server_in_use()):
        return (
            f"its run is on {record.delivered.server}: set MLFLOW_TRACKING_URI to that, and the next run sends the rest"
        )
    return record.trouble or "not sent yet"


def _users_of(entry: Entry, used: Mapping[str, set[str]], found: list[Entry]) -> set[str]:
    """Return the names of the runs that use an entry or something made from it."""
    return {name for key, names in used.items() if _matches(entry, with_inputs([key], found)) for name in names}


def altered(root: str) -> list[str]:
    """Return the names of finished artifacts with a file that is missing or differs from their manifest."""
    store = _existing(root)
    artifacts = [entry for entry in entries(store) if entry.path.parent.name == "artifacts"]
    return [entry.name for entry in artifacts if entry.state == "damaged" or store.find(entry.kind, entry.key) is None]


def collect(root: str, dry_run: bool) -> list[Entry]:
    """Remove what no tracked run needs, and work that none will continue; leave alone what a running flow holds.

    Args:
        root: Folder of the store.
        dry_run: Only say what would be removed.

    Returns:
        Entries that were, or would be, removed.

    Raises:
        StageError: If there are artifacts, but none belongs to a run of this MLflow.
    """
    store = _existing(root)
    found, used = entries(store), users(store)
    needed = with_inputs(used, found)
    unused = [entry for entry in found if entry.state == "left over" or not _matches(entry, needed)]
    wanted_once = [entry for entry in found if entry.state != "left over"]
    if wanted_once and not any(_matches(entry, needed) for entry in wanted_once):
        raise StageError(
            f"no run in MLflow uses anything in {store.root}, so this would empty it; is MLFLOW_TRACKING_URI the "
            "server that its runs are on? To start over, delete the folder"
        )
    if dry_run:
        return unused
    sweep(store)
    removed = []
    for start in range(0, len(unused), AT_ONCE):
        with contextlib.ExitStack() as locks:
            # A flow first locks what it is about to use and then records the use. So MLflow and the outbox, asked
            # while we hold the locks, know of every use.
            held = [entry for entry in unused[start : start + AT_ONCE] if _acquired(store.lock(entry.key), locks)]
            needed = with_inputs(users(store), found)
            now = [entry for entry in (look(entry.path, store) for entry in held) if entry is not None]
            doomed = [entry for entry in now if entry.state == "left over" or not _matches(entry, needed)]
            for entry in doomed:
                remove(entry)
            removed += doomed
    return removed


def _matches(entry: Entry, keys: Iterable[str]) -> bool:
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
        raise StageError(f"{path} is not a store: it has no folder `artifacts`; name another with --store")
    return Store(path)
