"""Digest of the code behind a stage: everything that computes, and no words.

If a key changed with an edited sentence, models would be trained again for nothing. If it stayed the same when the
computation changes, old models would be served. So the digest covers the syntax trees of the stage's module and of all
it imports from this package, without comments, docstrings, what is printed or logged, and the texts of errors. A name
that stands in these alone is not followed. In modules that declare settings, only methods and constants of classes
count: the values of fields are part of the key already.
"""

import ast
import functools
import hashlib
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minillm.reachable import reachable

PACKAGE = Path(__file__).parents[1]
PIECEWISE = ("minillm.config", "minillm.stages", "minillm.words", "minillm.redaction")
"""Packages of which only the definitions that a stage's code names count, and of a class only methods and constants:
the values of its fields are in the key."""
DECLARATIONS = (
    "kind", "module", "inputs", "shown", "shares_work", "reads_only", "runs_model", "is_page", "for_evaluation",
)  # fmt: skip
"""Constants of a stage's class that say how it is run and shown; all others compute."""
TELLING = ("minillm.errors", "minillm.nearest")
"""Modules that only make messages."""
LOG_LEVELS = ("debug", "info", "warning", "error", "exception")
CHECKS = ("model_validator", "field_validator")
"""Decorators of methods that only check: the checked values are in the key."""
PARSING = threading.Lock()
"""The parser of Python 3.11 fails when several threads use it at once."""
Place = tuple[str, str]
"""A module, and a definition in it or, for the whole module, the empty string."""


@functools.cache
def source_digest(module: str) -> str:
    """Hex sha256 of what computes in a module and in its transitive imports within the package, templates included.

    Args:
        module: Dotted name, e.g. minillm.training.trainer.
    """
    digest = hashlib.sha256()
    with PARSING:
        for place in sorted(reachable([(module, "")], lambda place: _read(place).imports)):
            source = _read(place)
            if not source.text and not source.templates:  # a name that computes nothing
                continue
            digest.update(f"{place}\n{source.text}".encode())
            for template in source.templates:
                digest.update(template.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _Source:
    """Content of one place, as the digest needs it."""

    text: str
    """Dump of the syntax tree, without words."""
    imports: tuple[Place, ...]
    """Places in this package that it needs, including modules that it names in a string to run them in a process."""
    templates: tuple[Path, ...] = ()
    """Files that it names in the folders `templates` beside or above it, and files that these name in turn."""


@functools.cache
def _read(place: Place) -> _Source:
    module, name = place
    if name:
        return _definition(module, name)
    tree = _tree(module)
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    used = _names([tree])
    imports = [
        found
        for node in ast.walk(tree)
        for name, found in _imported(node).items()
        if name in used or isinstance(node, ast.Import)
    ]
    imports += [(word, "") for word in sorted(words) if word.startswith(f"{PACKAGE.name}.") and _file(word)]
    return _Source(ast.dump(tree), tuple(imports), tuple(_templates(module, words)))


def _definition(module: str, name: str) -> _Source:
    """Source of a definition in a declaring module; empty if the module has no such definition."""
    for node in _tree(module).body:
        if name in (imported := _imported(node)):
            return _Source("", (imported[name],))
        if name not in _defined(node):
            continue
        if not isinstance(node, ast.ClassDef):
            return _Source(ast.dump(node), tuple((module, used) for used in _names([node])))
        computing = [part for part in node.body if _computes(part)]
        types = _names([*node.bases, *(part.annotation for part in node.body if isinstance(part, ast.AnnAssign))])
        used = _names(computing) | {name for name in types if _is_class(module, name)}
        return _Source("\n".join(map(ast.dump, computing)), tuple((module, other) for other in used))
    return _Source("", ())


def _defined(node: ast.stmt) -> set[str]:
    """Names that a module's statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _is_class(module: str, name: str) -> bool:
    """Return True if a name in a declaring module is a class. Other types only say which values are allowed."""
    for node in _tree(module).body:
        if name in (imported := _imported(node)):
            return _is_class(*imported[name])
        if name in _defined(node):
            return isinstance(node, ast.ClassDef)
    return False


def _computes(part: ast.stmt) -> bool:
    """Return True for a method that does more than check, and for a constant, of a class that declares settings."""
    if isinstance(part, ast.FunctionDef):
        return not _names(part.decorator_list) & set(CHECKS)
    constant = isinstance(part, ast.AnnAssign) and "ClassVar" in _names([part.annotation])
    return constant and not _defined(part) & set(DECLARATIONS)


def _names(nodes: Iterable[ast.AST]) -> set[str]:
    return {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}


def _imported(node: ast.AST) -> dict[str, Place]:
    """Places that a statement imports from this package, by their names in the importing module."""
    found: dict[str, Place] = {}
    if isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inside = f"{node.module}.{alias.name}"
            found[alias.asname or alias.name] = (inside, "") if _file(inside) else (node.module, alias.name)
    elif isinstance(node, ast.Import):
        found = {alias.asname or alias.name: (alias.name, "") for alias in node.names}
    return {
        name: (module, definition if module.startswith(PIECEWISE) else "")
        for name, (module, definition) in found.items()
        if _file(module) and not module.startswith(TELLING)
    }


class _WithoutWords(ast.NodeTransformer):
    """Transformer that removes docstrings, what is printed, and the texts of errors and log lines."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop a string that is a statement of its own."""
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Remove what is printed or logged, and the texts in the arguments of an error."""
        *owner, called = ast.unparse(node.func).rsplit(".", 1)
        if called == "print" or (owner == ["LOGGER"] and called in LOG_LEVELS):
            node.args, node.keywords = [], []
        elif called.endswith("Error"):
            _WithoutTexts().generic_visit(node)
        return self.generic_visit(node)


class _WithoutTexts(ast.NodeTransformer):
    """Transformer that empties strings, and f-strings with all that they show."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        """Empty an f-string."""
        return ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Empty a string."""
        return ast.Constant("") if isinstance(node.value, str) else node


def _templates(module: str, words: set[str]) -> list[Path]:
    files = {path.name: path for folder in _template_folders(module) for path in folder.glob("*")}

    def named(path: Path) -> list[Path]:
        text = path.read_text(encoding="utf-8")
        return [files[name] for name in re.findall(r"{% *(?:extends|from|import|include) *\"([^\"]+)\"", text)]

    return sorted(reachable([path for path in files.values() if {path.name, path.stem} & words], named))


def _template_folders(module: str) -> Iterator[Path]:
    """Yield the folders `templates` above and beside a module, the nearest last."""
    folder = PACKAGE
    for part in module.split(".")[1:-1]:
        folder /= part
        yield folder / "templates"


@functools.cache
def _tree(module: str) -> ast.Module:
    """Return the syntax tree of a module, without words."""
    path = _file(module)
    if path is None:
        raise ValueError(f"{module} is no module of {PACKAGE}")
    return _WithoutWords().visit(ast.parse(path.read_text(encoding="utf-8")))


@functools.cache
def _file(module: str) -> Path | None:
    """Return the file of a module of this package; None if it is not one."""
    if module.split(".")[0] != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
