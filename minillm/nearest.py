"""Suggestions for what the user may have meant: names near an unknown name, files near a missing one."""

import difflib
from collections.abc import Iterable
from pathlib import Path


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `did you mean …?` if a known name is near, or else the list of all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(names) or 'none'}"


def missing_path(path: Path) -> str:
    """Say that a path does not exist, and suggest a near one or name its first missing part."""
    path = path.absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    part = path.relative_to(folder).parts[0]
    try:
        siblings = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except PermissionError:  # the folder may be entered, but not listed
        siblings = []
    near = difflib.get_close_matches(part, siblings, n=1)
    if near:
        return f"{path} does not exist; did you mean {folder / near[0]}?"
    return f"{path} does not exist: {folder} has no {part}"
