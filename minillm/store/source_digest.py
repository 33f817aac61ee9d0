"""Digest of the code behind a stage: all that computes, and no words.

A key that moved with a mended sentence would train models again for nothing; one that stayed where something else is
computed would serve old models. So what counts is the syntax tree of the stage's module and of all that it imports from
this package, without comments, docstrings and the texts of errors and log lines. Of modules that declare settings, what
counts is how they compute: the values are part of the key already.
"""

import ast
import copy
import functools
import hashlib
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
DECLARING = ("minillm.config", "minillm.stages")
"""Of these, only the definitions that a stage's code names count, and of a class only its methods: its fields are in
the key by their values."""
TELLING = ("minillm.errors", "minillm.nearest", "minillm.redaction")
"""Modules that only make messages."""
CHECKS = ("model_validator", "field_validator")
"""Methods of these decorators leave their values in the key."""
PARSING = threading.Lock()
"""The parser of Python 3.11 fails when several threads use it at once."""
Place = tuple[str, str]
"""A module, and a definition in it; the empty string for the whole module."""


@functools.cache
def source_digest(module: str) -> str:
    """Hex sha256 over what computes in a module and in its transitive imports within the package, and their templates.

    Args:
        module: Dotted name, e.g. minillm.training.trainer.
    """
    digest = hashlib.sha256()
    with PARSING:
        for place in sorted(_closure((module, ""))):
            source = _read(place)
            if not source.text and not source.templates:  # a name that nothing is computed by
                continue
            digest.update(f"{place}\n{source.text}".encode())
            for template in source.templates:
                digest.update(template.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Source:
    """What the digest needs of one place."""

    text: str
    """The syntax tree, written out, without words."""
    imports: tuple[Place, ...]
    """What it needs of this package; modules that it names in a string, to run them in a process, among it."""
    templates: tuple[Path, ...] = ()
    """Files that it names in the folders `templates` beside or above it, and those that they name in turn."""


def _closure(place: Place) -> set[Place]:
    seen: set[Place] = set()
    waiting = [place]
    while waiting:
        found = waiting.pop()
        if found not in seen:
            seen.add(found)
            waiting += _read(found).imports
    return seen


@functools.cache
def _read(place: Place) -> _Source:
    module, name = place
    if name:
        return _definition(module, name)
    tree = _tree(module)
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    imports = [found for node in ast.walk(tree) for found in _imported(node).values()]
    imports += [(word, "") for word in sorted(words) if word.startswith(f"{PACKAGE.name}.") and _file(word)]
    return _Source(_dump(tree), tuple(imports), tuple(_templates(module, words)))


def _definition(module: str, name: str) -> _Source:
    """A definition of a declaring module; an empty source where the module has none of that name."""
    for node in _tree(module).body:
        if name in (imported := _imported(node)):
            return _Source("", (imported[name],))
        if name not in _defined(node):
            continue
        if not isinstance(node, ast.ClassDef):
            return _Source(_dump(node), tuple((module, used) for used in _names([node])))
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef) and not _checks(part)]
        types = _names([*node.bases, *(part.annotation for part in node.body if isinstance(part, ast.AnnAssign))])
        used = _names(methods) | {name for name in types if _is_class(module, name)}
        return _Source("\n".join(map(_dump, methods)), tuple((module, other) for other in used))
    return _Source("", ())


def _defined(node: ast.stmt) -> set[str]:
    """Names that a statement of a module gives a meaning to."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _is_class(module: str, name: str) -> bool:
    """Whether a name of a declaring module is that of a class; a type of another kind only says what is allowed."""
    for node in _tree(module).body:
        if name in (imported := _imported(node)):
            return _is_class(*imported[name])
        if name in _defined(node):
            return isinstance(node, ast.ClassDef)
    return False


def _checks(method: ast.FunctionDef) -> bool:
    return bool(_names(method.decorator_list) & set(CHECKS))


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def _imported(node: ast.AST) -> dict[str, Place]:
    """What an import takes from this package, by the name that it has here."""
    found: dict[str, Place] = {}
    if isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            found[alias.asname or alias.name] = (inside, "") if _file(inside) else (node.module, alias.name)
    elif isinstance(node, ast.Import):
        found = {alias.asname or alias.name: (alias.name, "") for alias in node.names}
    return {
        name: (module, definition if module.startswith(DECLARING) else "")
        for name, (module, definition) in found.items()
        if _file(module) and not module.startswith(TELLING)
    }


def _dump(node: ast.AST) -> str:
    return ast.dump(_WithoutWords().visit(copy.deepcopy(node)))


class _WithoutWords(ast.NodeTransformer):
    """Takes out docstrings, and the texts of errors and of lines in the log."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop a string that stands alone."""
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Empty the strings in the arguments of an error or of `print`; what is computed for them stays."""
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called == "print" or called.endswith("Error"):
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                for part in ast.walk(argument):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        part.value = ""
        return self.generic_visit(node)


def _templates(module: str, words: set[str]) -> list[Path]:
    files = {path.name: path for folder in _template_folders(module) for path in folder.glob("*")}
    waiting = [path for path in files.values() if path.name in words or path.stem in words]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        named = re.findall(r"{% *(?:extends|from|import|include) *\"([^\"]+)\"", path.read_text(encoding="utf-8"))
        waiting += [files[name] for name in named if files[name] not in found]
    return sorted(found)


def _template_folders(module: str) -> Iterator[Path]:
    """The folders `templates` above and beside a module, the nearest last."""
    folder = PACKAGE
    for part in module.split(".")[1:-1]:
        folder /= part
        yield folder / "templates"


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    if path is None:
        raise ValueError(f"{module} is no module of {PACKAGE}")
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _file(module: str) -> Path | None:
    """Where a module of this package stands; None if it is none."""
    if module.split(".")[0] != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
