"""Configurations as YAML files: merged over their bases, with overrides and without the entries that are null."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minillm.config.named import part_of
from minillm.errors import ConfigError
from minillm.files import local_path, problem
from minillm.nearest import suggestion

ENTRIES = (
    ("methods",), ("models",), ("variants",), ("grid",),
    ("evaluation", "benchmarks"), ("evaluation", "calibration"), ("evaluation", "held_out"),
    ("data", "unlabelled"), ("data", "test"),
)  # fmt: skip
"""Sections that hold entries by name; an entry that is null is left out."""

UNREADABLE = (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError)
"""Errors from a file that is not YAML, or from values that do not go together."""
Keys = tuple[str, ...]


def read_merged(
    path: Path, overrides: Sequence[str], given: Mapping[str, Any], *, follows_base: bool
) -> dict[str, Any]:
    """Read a configuration, merged over its bases, and leave out entries that are null.

    Args:
        path: YAML file.
        overrides: `key.sub=value` each, merged over the file.
        given: Sections that stand for those of the file.
        follows_base: True to merge the file over the one that it names as `base`.

    Raises:
        ConfigError: A file is missing or unreadable, or does not go together with what it is merged over.
    """
    file = _with_bases(path) if follows_base else _file(path)
    file.update(given)
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.merge(file, *map(_override, overrides)), resolve=True)
        known = _entries(file)
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error
    for keys, name in list(nulls(raw)):
        if wrong := _unknown(keys, name, known):
            raise ConfigError(wrong)
        del part_of(raw, *keys)[name]
    return {str(key): value for key, value in raw.items()}


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """Read a file and merge it over its `base`, which may have one in turn.

    Args:
        path: The file.
        above: Files that lead to it, each the base of the one before.

    Raises:
        ConfigError: A file is missing or no configuration, is its own base, or leaves out what its base lacks.
    """
    file = _file(path)  # first, since a path that no file can have cannot be resolved
    if path.resolve() in above:
        raise ConfigError(f"base: {' → '.join(map(str, [*above, path.resolve()]))} come back to the first; cut one")
    base = file.pop("base", None)
    if base is None:
        return file
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is the path of one configuration, not {base!r}")
    below = _with_bases(local_path(base), (*above, path.resolve()))
    try:
        merged = OmegaConf.merge(below, file)
        known = _entries(below)
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be merged over its base {base}: {error}") from error
    assert isinstance(merged, DictConfig)
    for keys, name in nulls(OmegaConf.to_container(file)):
        if wrong := _unknown(keys, name, known):
            raise ConfigError(f"{path}, merged over its base {base}: {wrong}")
    return merged


def _file(path: Path) -> DictConfig:
    if reason := problem(path) or ("It is a folder" if path.is_dir() else None):
        folders = [folder for folder in (path.parent, Path("configs")) if problem(folder) is None]
        known = sorted({str(p) for folder in folders for p in folder.glob("*.yaml")})
        raise ConfigError(f"no configuration file {path}; there are: {', '.join(known) or 'none'}. {reason}")
    try:
        file = OmegaConf.load(path)
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(file, DictConfig):
        raise ConfigError(f"{path} holds a list; a configuration is a mapping of sections (data, evaluation, …)")
    return file


def _override(text: str) -> DictConfig:
    if "=" not in text:
        raise ConfigError(f"{text!r} is not an override; write key.sub=value, e.g. student.initial.epochs=1")
    try:
        return OmegaConf.from_dotlist([text])
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {text!r}: what follows the = is not YAML: {error}") from error


def _entries(file: DictConfig) -> dict[Keys, Sequence[str]]:
    """Return the names in each section that holds entries."""
    return {keys: list(OmegaConf.select(file, ".".join(keys)) or ()) for keys in ENTRIES}


def nulls(raw: Any) -> Iterator[tuple[Keys, str]]:
    """Yield section and name of each entry that is null."""
    for keys in ENTRIES:
        section = part_of(raw, *keys)
        if isinstance(section, dict):
            yield from ((keys, name) for name, entry in section.items() if entry is None)


def _unknown(keys: Keys, name: str, known: Mapping[Keys, Sequence[str]]) -> str | None:
    """Say that an entry to leave out is not there; None if it is."""
    if name in known[keys]:
        return None
    field = ".".join([*keys, name])
    return f"{field} is null, which leaves it out, but is not there; {suggestion(name, known[keys])}"
