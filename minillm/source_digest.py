"""Digest of the library code behind a stage: its module and all that it imports from this package."""

import ast
import functools
import hashlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent
DECLARATIONS = ("minillm.config", "minillm.stages", "minillm.redaction")
"""No reason to compute anything again: of the first two, the values that a stage has are part of its key, so that a new
field changes no other; the last takes secrets out of messages and pages and computes nothing."""
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
            source = _read(name)
            digest.update(f"{name}\n{source.tree}".encode())
            for template in source.templates:
                digest.update(template.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Source:
    """What the digest needs of one module."""

    tree: str
    """As text."""
    imports: tuple[str, ...]
    """Modules of this package that compute something."""
    templates: tuple[Path, ...]
    """Files of the templates folder beside it that it names, and those that they name in turn."""


@functools.cache
def _read(module: str) -> _Source:
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    words = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    imports = [name for node in nodes for name in _imported(node)]
    computing = tuple(name for name in imports if name.startswith("minillm.") and _computes(name))
    return _Source(ast.dump(tree), computing, tuple(_templates(_file(module).parent / "templates", words)))


def _closure(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _read(name).imports
    return seen


def _imported(node: ast.AST) -> list[str]:
    """Names that may be modules."""
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def _computes(module: str) -> bool:
    return not module.startswith(DECLARATIONS) and _file(module).exists()


def _templates(folder: Path, words: set[str]) -> list[Path]:
    files = {path.name: path for path in folder.glob("*")}
    waiting = [path for path in files.values() if path.name in words or path.stem in words]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        named = re.findall(r"{% *(?:extends|from|import|include) *\"([^\"]+)\"", path.read_text(encoding="utf-8"))
        waiting += [files[name] for name in named if files[name] not in found]
    return sorted(found)


def _file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
