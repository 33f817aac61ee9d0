"""Loading of configurations: YAML, overrides, validation, and one message that lists everything that is wrong."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from yaml import YAMLError

from minillm.config import Config, EvaluationConfig, Pretrain, Study, System2, Tracked
from minillm.config.named import part_of, problems_of_named
from minillm.errors import ConfigError
from minillm.files import local_path, problem
from minillm.nearest import suggestion

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""`gpt2` or `owner/gpt2`."""
NAMED_MODEL = re.compile(r"([^=/]+)=(.+)")
"""NAME=MODEL. An = after the first slash is part of a path."""

ENTRIES = (
    ("methods",), ("models",), ("variants",), ("grid",),
    ("evaluation", "benchmarks"), ("evaluation", "calibration"), ("evaluation", "held_out"),
    ("data", "unlabelled"), ("data", "test"),
)  # fmt: skip
"""Sections that hold entries by name; an entry that is null is left out."""

UNREADABLE = (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, RecursionError)
"""Errors from a file that is not YAML, or from values that do not go together."""

Kind = TypeVar("Kind", bound=Tracked)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Load and validate the configuration of a distillation.

    Args:
        path: YAML file, merged over the file that it names as `base`, if any (relative to the working directory);
            `${…}` interpolation is resolved.
        overrides: `key.sub=value` each, the value in YAML, applied over the file; `methods.kd=null` leaves out a
            method, and likewise a benchmark or another set to measure on.

    Raises:
        ConfigError: The configuration cannot run. The message lists every problem found (unreadable file, unknown
            key, wrong value, contradiction, missing data, no key for the judge), each with its dotted field.
    """
    return _load(Config, path, overrides)


def load_evaluation(path: str | Path, models: Sequence[str] = (), overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Load and validate the configuration of an evaluation.

    Args:
        path: As for `load_config`.
        models: MODEL or NAME=MODEL each, a directory or a hub name; if given, they replace the file's `models`.
        overrides: As for `load_config`.

    Raises:
        ConfigError: As in `load_config`, or two models would have the same name.
    """
    return _load(EvaluationConfig, path, overrides, named_models(models))


def load_system2(path: str | Path, overrides: Sequence[str] = ()) -> System2:
    """Load and validate the configuration of a System 2 distillation; arguments and errors as for `load_config`."""
    return _load(System2, path, overrides)


def load_pretrain(path: str | Path, overrides: Sequence[str] = ()) -> Pretrain:
    """Load and validate the configuration of a pre-training; arguments and errors as for `load_config`."""
    return _load(Pretrain, path, overrides)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Load and validate the configuration of a study and those of its runs.

    Args:
        path: As for `load_config`.
        overrides: `key.sub=value` each, applied over the study's own fields.

    Returns:
        The study, with the `runtime` and `overrides` that its runs use.

    Raises:
        ConfigError: As in `load_config`, naming the variant that cannot run; or variants cannot be compared.
    """
    study = _load(Study, path, overrides)
    changed = study.runtime.model_dump(mode="json", include=study.runtime.model_fields_set)
    common = (
        *study.overrides,
        "export=null",
        *(f"runtime.{field}={json.dumps(value)}" for field, value in changed.items()),
    )
    try:
        base = load_config(study.base, common)
    except ConfigError as error:
        raise ConfigError(f"{path}: its base with its `overrides`: {error}") from error
    for name in study.rows:
        if name not in base.methods:
            raise ConfigError(f"{path}: {study.base} has no method {name!r}; {suggestion(name, base.methods)}")
    others = tuple(f"methods[{name}]=null" for name in base.methods if name not in study.rows)
    study = study.model_copy(update={"overrides": (*common, *others), "runtime": base.runtime})
    loaded: dict[str, Config] = {}
    problems: list[str] = []
    for run in (run for run in study.runs if run.seed == study.seeds[0]):
        variant = run.variants[0]
        try:
            loaded[variant] = load_config(study.base, run.overrides)
        except ConfigError as error:
            problems.append(f"variant {variant!r} ({', '.join(study.changes[variant])}): {error}")
    problems += _incomparable(loaded, study)
    if problems:
        raise ConfigError("\n".join([f"{path} cannot run:", *problems]))
    return study


def named_models(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return models of the command line as a configuration has them, by name: NAME, or the last part of MODEL.

    A MODEL that exists on disk, or that cannot be a hub name, is a path.

    Raises:
        ConfigError: Two models have the same name.
    """
    models: dict[str, dict[str, str]] = {}
    for word in words:
        match = NAMED_MODEL.fullmatch(word)
        name, model = match.groups() if match else ("", word)
        is_path = problem(local_path(model)) is None or not HUB_NAME.fullmatch(model)
        name = name or Path(model).name
        if name in models:
            raise ConfigError(f"two models are named {name}; write NAME=MODEL, e.g. {name}-2={model}")
        models[name] = {"path" if is_path else "hub": model}
    return models


def _load(
    kind: type[Kind], path: str | Path, overrides: Sequence[str], models: Mapping[str, Any] | None = None
) -> Kind:
    """Read and validate a configuration, and look for everything that it names."""
    raw = _read(kind, local_path(path), overrides, models)
    problems: list[str] = []
    config = None
    try:
        config = kind.model_validate(raw)
    except ValidationError as error:
        problems += [_explain(details, kind) for details in error.errors()]
    problems += problems_of_named(raw, config)
    if problems or config is None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{path} cannot run, {len(problems)} problem{'s'[: len(problems) > 1]}:\n{lines}")
    return config


def _read(
    kind: type[Tracked], path: Path, overrides: Sequence[str], models: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Merge a configuration over its bases, and the overrides over both, and leave out entries that are null."""
    file = _file(path) if "base" in kind.model_fields else _with_bases(path)  # a study's base is not merged
    if models:
        file["models"] = models
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.merge(file, *map(_override, overrides)), resolve=True)
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error
    _leave_out_nulls(raw, file)
    return {str(key): value for key, value in raw.items()}


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> DictConfig:
    """Read a file and merge it over its `base`, which may have one in turn.

    Args:
        path: The file.
        above: Files that lead to it, each the base of the one before.

    Raises:
        ConfigError: A file is missing or no configuration, or is its own base.
    """
    file = _file(path)  # first, since a path that no file can have cannot be resolved
    if path.resolve() in above:
        raise ConfigError(f"base: {' → '.join(map(str, [*above, path.resolve()]))} come back to the first; cut one")
    base = file.pop("base", None)
    if base is None:
        return file
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is the path of one configuration, not {base!r}")
    merged = OmegaConf.merge(_with_bases(local_path(base), (*above, path.resolve())), file)
    assert isinstance(merged, DictConfig)
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


def _leave_out_nulls(raw: dict[Any, Any], file: Any) -> None:
    for keys in ENTRIES:
        section = part_of(raw, *keys)
        for name in [name for name, entry in section.items() if entry is None] if isinstance(section, dict) else []:
            known = OmegaConf.select(file, ".".join(keys)) or {}
            if name not in known:
                field = ".".join([*keys, name])
                raise ConfigError(f"{field} is null, which leaves it out, but is not there; {suggestion(name, known)}")
            del section[name]


def _incomparable(loaded: Mapping[str, Config], study: Study) -> Iterator[str]:
    """Say why variants cannot be compared in one table."""
    names = list(loaded)
    first = loaded.get(study.baseline)
    for place, name in enumerate(names):
        config = loaded[name]
        if first is not None and _measured_on(config) != _measured_on(first):
            yield (
                f"variant {name!r} is measured on other benchmarks than {study.baseline!r}, so they cannot be paired; "
                "change evaluation.benchmarks and data.directory in the study's `overrides`, for all"
            )
        if same := [other for other in names[:place] if loaded[other] == config]:
            yield f"variants {same[0]!r} and {name!r} are the same configuration; leave one out"


def _measured_on(config: Config) -> tuple[Any, ...]:
    return config.evaluation.benchmarks, config.data.directory


def _override(text: str) -> DictConfig:
    if "=" not in text:
        raise ConfigError(f"{text!r} is not an override; write key.sub=value, e.g. student.initial.epochs=1")
    try:
        return OmegaConf.from_dotlist([text])
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {text!r}: what follows the = is not YAML: {error}") from error


def _explain(details: ErrorDetails, kind: type[Tracked]) -> str:
    """Turn one of pydantic's errors into a line: field, value, what is wrong, what to do."""
    location = details["loc"]
    if location and location[-1] == "[key]":  # the name of an entry, which the message quotes
        location = location[:-2]
    name, section = ".".join(map(str, location)), _section(kind, location[:-1])
    if details["type"] == "extra_forbidden" and section is not None:
        return f"{name}: unknown key; {suggestion(str(location[-1]), _fields(section))}"
    field = _fields(section).get(str(location[-1])) if section is not None and location else None
    meaning = f" ({' '.join(field.description.split())})" if field is not None and field.description else ""
    if details["type"] == "missing":
        return f"{name}: required, but not given{meaning}"
    if details["type"] == "value_error":
        return f"{name}: {details['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    return f"{name}: {details['msg']}, not {details['input']!r}{meaning}"


def _section(kind: type[Tracked], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the model that validates a location of the configuration; None inside a plain value."""
    current: Any = kind
    for part in location:
        if get_origin(current) is dict:  # a key such as a method's name
            current = get_args(current)[1]
            continue
        if not _is_model(current) or str(part) not in current.model_fields:
            return None
        current = current.model_fields[str(part)].annotation
        if get_origin(current) is not dict:  # Policy | None is Policy
            current = next((a for a in get_args(current) if _is_model(a)), current)
    return current if _is_model(current) else None


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a section by their keys in the configuration."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
