"""The store: what is there, whether it is whole, and room for more.

`python -m flows.store --help` tells how to run it.
"""

import argparse
import sys

from humanize import naturalsize

from minillm.errors import StageError
from tasks.store import altered, collect, listing


def main() -> int:
    """Command line: 0 when all is well, 1 when something is altered, 2 when it cannot be told."""
    parser = argparse.ArgumentParser(prog="python -m flows.store", description="List, verify and clean the store.")
    parser.add_argument("--store", default=".minillm", help="runtime.store of the runs (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{ls,verify,gc}")
    commands.add_parser("ls", help="what is there: size, age, what made it and which runs use it")
    commands.add_parser("verify", help="compare every file with its checksum")
    clean = commands.add_parser("gc", help="remove what no run in MLflow needs; delete runs there first")
    clean.add_argument("--dry-run", action="store_true", help="only tell what would be removed")
    arguments = parser.parse_args()
    try:
        return {"ls": _list, "verify": _verify, "gc": _clean}[arguments.command](arguments)
    except StageError as error:
        print(error, file=sys.stderr)
        return 2


def _list(arguments: argparse.Namespace) -> int:
    print(listing(arguments.store))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    names = altered(arguments.store)
    for name in names:
        print(f"{name}: files missing or altered; the next run that needs it computes it again")
    print(f"{len(names)} altered" if names else "every file is as its manifest says")
    return 1 if names else 0


def _clean(arguments: argparse.Namespace) -> int:
    removed = collect(arguments.store, arguments.dry_run)
    for entry in removed:
        print(f"{entry.name:<40} {naturalsize(entry.bytes)}")
    words = "would be removed" if arguments.dry_run else "removed"
    print(f"{len(removed)} {words}, {naturalsize(sum(entry.bytes for entry in removed))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
