"""Digest of the library code behind a stage: its module and all that it imports from this package."""

import ast
import functools
import hashlib
import re
import threading
from pathlib import Path

PACKAGE = Path(__file__).parent
DECLARATIONS = ("minillm.config", "minillm.stages")
"""They compute nothing: the values that a stage has of them are part of its key, so a new field changes no other."""
PARSING = threading.Lock()
"""The parser of Python 3.11 fails when several threads use it at once."""


@functools.cache
def source_digest(module: str) -> str:
    """Hex sha256 over the syntax trees of `module` and its transitive imports within the package, and their templates.

    Comments and formatting do not count, so that mending one does not train a model again.

    Args:
        module: Dotted name, e.g. minillm.training.trainer.
    """
    digest = hashlib.sha256()
    with PARSING:
        for name in sorted(_closure(module)):
            digest.update(f"{name}\n{ast.dump(_tree(name))}".encode())
            for template in _templates(name):
                digest.update(template.read_bytes())
    return digest.hexdigest()


def _closure(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(_tree(name)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            waiting += [name for name in names if name.startswith("minillm.") and _computes(name)]
    return seen


def _computes(module: str) -> bool:
    return not module.startswith(DECLARATIONS) and _file(module).exists()


def _templates(module: str) -> list[Path]:
    """Files of the templates folder beside a module that it names, and those that they name in turn."""
    names = {n.value for n in ast.walk(_tree(module)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    files = {path.name: path for path in _file(module).parent.glob("templates/*")}
    waiting = [path for path in files.values() if path.name in names or path.stem in names]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        named = re.findall(r"{% *(?:extends|from|import|include) *\"([^\"]+)\"", path.read_text())
        waiting += [files[name] for name in named if files[name] not in found]
    return sorted(found)


def _file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text())
