"""Cost of waiting for the disk when completing results and writing small files, with and without fsync.

`python -m benchmarks.durability [FOLDER]` prints a table; the folder selects the disk (default: the current folder's).
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from minillm.durable import write_atomically
from minillm.store.artifacts import Store

FILES = 10
SIZES = {"ten files, 1 MB together": (1 << 20, 15), "ten files, 500 MB together": (500 << 20, 3)}
"""Size in bytes and number of repetitions of each measurement."""
SMALL = 50


def completion(store: Store, number: int, size: int) -> float:
    """Return the seconds that completing a result takes."""
    key = f"{number:064d}"
    output = store.work_directory("measured", key) / "output"
    for name in range(FILES):
        (output / str(name)).write_bytes(os.urandom(size // FILES))
    began = time.perf_counter()
    store.complete("measured", key, {})
    return time.perf_counter() - began


def measure(folder: Path) -> list[float]:
    """Return the median seconds of each kind of work."""
    found, number = [], 0
    for size, repetitions in SIZES.values():
        store = Store(folder / f"{size}")
        found.append(statistics.median(completion(store, number + i, size) for i in range(repetitions)))
        number += repetitions
    began = time.perf_counter()
    for _ in range(SMALL):
        write_atomically(folder / "small.json", "x" * 2000)
    return [*found, (time.perf_counter() - began) / SMALL]


def main() -> None:
    """Measure without and with fsync, and print the table."""
    columns, fsync = {}, os.fsync
    for name, wait in (("without waiting", lambda descriptor: None), ("with", fsync)):
        os.fsync = wait
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as folder:
            columns[name] = [f"{1000 * seconds:.1f} ms" for seconds in measure(Path(folder))]
    rows = zip([*SIZES, "a small file"], *columns.values(), strict=True)
    print(tabulate(rows, ["", *columns], "github"))


if __name__ == "__main__":
    main()
