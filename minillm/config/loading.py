"""Loading of configurations: files, validation, and one message that lists everything that is wrong."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from minillm.config import Config, EvaluationConfig, Pretrain, Study, System2, Tracked
from minillm.config.merging import read_merged
from minillm.config.named import problems_of_named
from minillm.errors import ConfigError
from minillm.files import local_path, problem
from minillm.nearest import suggestion

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
"""`gpt2` or `owner/gpt2`."""
NAMED_MODEL = re.compile(r"([^=/]+)=(.+)")
"""NAME=MODEL. An = after the first slash is part of a path."""

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
    given = {"models": models} if models else {}
    raw = read_merged(local_path(path), overrides, given, follows_base="base" not in kind.model_fields)
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
