"""Reading a configuration: YAML, overrides, validation, and one message for everything that is wrong with it."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml import YAMLError

from minillm.config import Config
from minillm.errors import ConfigError
from minillm.nearest import missing_path, suggestion

DOWNSTREAM_PACKAGES = ("lm_eval", "accelerate")
"""Of the extra `downstream`."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of a YAML file.

    Args:
        path: YAML file; `${…}` interpolation is resolved.
        overrides: `key.sub=value` each, the value in YAML, applied over the file.

    Raises:
        ConfigError: With every problem found (unreadable file, unknown key, wrong value, contradiction, missing
            data), each by its dotted field.
    """
    raw = _read(Path(path), overrides)
    problems: list[str] = []
    config = None
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += [_explain(details) for details in error.errors()]
    problems += [*_missing_sources(raw), *_missing_packages(raw)]
    if problems or config is None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"{path} cannot run, {len(problems)} problem{'s'[: len(problems) > 1]}:\n{lines}")
    return config


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    if not path.is_file():
        known = sorted({str(p) for folder in (path.parent, Path("configs")) for p in folder.glob("*.yaml")})
        raise ConfigError(f"there is no configuration file {path}; there are: {', '.join(known) or 'none'}")
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), *map(_override, overrides))
        raw = OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read as a configuration: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a list; a configuration is a mapping of sections (data, teacher, …)")
    return {str(key): value for key, value in raw.items()}


def _override(text: str) -> DictConfig:
    if "=" not in text:
        raise ConfigError(f"{text!r} is not an override; write key.sub=value, e.g. student.initial.epochs=1")
    try:
        return OmegaConf.from_dotlist([text])
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {text!r}: what follows the = is not YAML: {error}") from error


def _explain(details: ErrorDetails) -> str:
    """One line for one of pydantic's errors: field, value, what is wrong, what to do."""
    location = details["loc"]
    name, section = ".".join(map(str, location)), _section(location[:-1])
    if details["type"] == "extra_forbidden" and section is not None:
        return f"{name}: unknown key; {suggestion(str(location[-1]), section.model_fields)}"
    field = section.model_fields.get(str(location[-1])) if section is not None and location else None
    meaning = f" ({' '.join(field.description.split())})" if field is not None and field.description else ""
    if details["type"] == "missing":
        return f"{name}: required, but not given{meaning}"
    if details["type"] == "value_error":
        return f"{name}: {details['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    return f"{name}: {details['msg']}, not {details['input']!r}{meaning}"


def _section(location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that validates what stands at a location of the configuration; None inside a plain value."""
    current: Any = Config
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


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _missing_sources(raw: dict[str, Any]) -> Iterator[str]:
    """Local data and models that the configuration names and that are not there."""
    directory = _at(raw, "data", "directory") or "."
    fields = ["data.instructions", "data.split", "data.plain_text"]
    benchmarks = _at(raw, "evaluation", "benchmarks")
    fields += [f"evaluation.benchmarks.{name}.source" for name in benchmarks] if isinstance(benchmarks, dict) else []
    local = _at(raw, "evaluation", "downstream", "local")
    for name in local if isinstance(local, dict) else []:
        fields += [f"evaluation.downstream.local.{name}.{rows}" for rows in ("source", "examples")]
    roots = {field: directory for field in fields} | {f: "." for f in ("teacher.model", "student.model", "tokenizer")}
    for field, root in roots.items():
        source = _at(raw, *field.split("."))
        if not isinstance(source, dict) or not isinstance(source.get("path"), str) or not isinstance(root, str):
            continue
        path = Path(root, source["path"], *([source["file"]] if isinstance(source.get("file"), str) else []))
        if not path.exists():
            yield f"{field}: {missing_path(path)}"


def _missing_packages(raw: dict[str, Any]) -> Iterator[str]:
    """Optional packages that the configuration needs and that are not installed."""
    missing = [name for name in DOWNSTREAM_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and _at(raw, "evaluation", "downstream") is not None:
        yield (
            f"evaluation.downstream: needs {' and '.join(missing)}, not installed here; run "
            "`pip install .[downstream]` in the repository (`make env` has it), or leave evaluation.downstream out"
        )


def _at(raw: Any, *keys: str) -> Any:
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw
