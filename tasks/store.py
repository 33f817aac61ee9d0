"""What the tracked runs need of a store, and the commands that list it, verify it and free what no run needs."""

import contextlib
from collections.abc import Iterable, Mapping

from filelock import FileLock, Timeout
from humanize import naturalsize
from tabulate import tabulate

from minillm.artifacts import Store
from minillm.errors import StageError
from minillm.files import local_path
from minillm.inventory import Entry, entries, remove, sweep, with_inputs
from tasks.outbox import records
from tasks.settings import set_mlflow_defaults
from tasks.tracking import KEY_TAG, PARENT_TAG

AT_ONCE = 100
"""Entries locked at a time, far below the number of files that a process may open."""


def users(store: Store) -> dict[str, set[str]]:
    """Names of the flow runs that use each key: those that MLflow has and that were not deleted there.

    What MLflow has not been told yet counts too: stages of running flows among them.

    Raises:
        StageError: MLflow does not answer.
    """
    found: dict[str, set[str]] = {}
    for record in records(store.root / "tracking"):
        if KEY_TAG in record.wanted.tags:
            found.setdefault(record.wanted.tags[KEY_TAG], set()).add(record.wanted.parent or record.id)
    for key, name in _tracked(store):
        found.setdefault(key, set()).add(name)
    return found


def _tracked(store: Store) -> Iterable[tuple[str, str]]:
    """Key of each stage that a flow run in MLflow has, and the flow run's name; champions, present and former, too."""
    set_mlflow_defaults()
    from tasks.mlflow_client import answering, connect, search_runs
    from tasks.registry import lineage, names_with_champion

    with answering():
        client = connect(store.root)
        runs = search_runs(client, [experiment.experiment_id for experiment in client.search_experiments()])
        champions = [
            (version.tags[KEY_TAG], f"champion {version.version} of {name}")
            for name in names_with_champion(client)
            for version in lineage(client, name)
        ]
    names = {run.info.run_id: run.info.run_name or run.info.run_id for run in runs}
    stages = [run.data.tags for run in runs if KEY_TAG in run.data.tags]
    # deleting a flow run in MLflow leaves the runs of its stages, which then count no more
    used = [(tags[KEY_TAG], names[tags[PARENT_TAG]]) for tags in stages if tags.get(PARENT_TAG) in names]
    return used + champions


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
            "" if entry.finished else "unfinished",
            ", ".join(sorted(_users_of(entry, used, found))) or "no run",
        )
        for entry in found
    ]
    total = naturalsize(sum(entry.bytes for entry in found))
    table = tabulate(rows, ["artifact", "of", "size", "changed", "made for", "", "used by"], "simple")
    return f"{table}\n\n{len(found)} entries, {total} in {store.root}"


def _users_of(entry: Entry, used: Mapping[str, set[str]], found: list[Entry]) -> set[str]:
    """Runs that use an entry or something made from it."""
    return {name for key, names in used.items() if _among(entry, with_inputs([key], found)) for name in names}


def altered(root: str) -> list[str]:
    """Names of finished artifacts that have a file missing or other than their manifest says."""
    store = _existing(root)
    artifacts = [entry for entry in entries(store) if entry.path.parent.name == "artifacts"]
    return [entry.name for entry in artifacts if not entry.finished or store.find(entry.kind, entry.key) is None]


def collect(root: str, dry_run: bool) -> list[Entry]:
    """Remove what no tracked run needs; what a running flow holds is left alone.

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
    unused = [entry for entry in found if not _among(entry, needed)]
    if found and len(unused) == len(found):
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
            doomed = [entry for entry in held if not _among(entry, needed)]
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
