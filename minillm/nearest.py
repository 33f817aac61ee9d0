"""What a person may have meant: names near an unknown name, files near a missing one."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean …?` for a name near a known one; all that are known where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names) or 'none'}"


def missing_path(path: Path) -> str:
    """That a path does not exist, at which of its parts it ends, and what is there instead."""
    path = path.absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    part = path.relative_to(folder).parts[0]
    try:
        siblings = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except PermissionError:  # it may be entered, but not listed
        siblings = []
    near = difflib.get_close_matches(part, siblings, n=1)
    if near:
        return f"{path} does not exist; did you mean {folder / near[0]}?"
    return f"{path} does not exist: {folder} has no {part}"
