"""Checks of what a configuration names outside itself: local data and models, packages, hosts, the judge's key."""

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minillm.config import BaseConfig, Config, Endpoint, System2, Tracked
from minillm.config.export import TOKEN_VARIABLE
from minillm.config.hosts import read_hosts
from minillm.errors import ConfigError
from minillm.files import local_path, problem
from minillm.redaction import HUB_TOKEN, SHORTEST

DOWNSTREAM_PACKAGES = ("lm_eval", "accelerate")
"""Packages of the extra `downstream`."""
LIBRARY_FIELDS = ("architecture", "changes")
"""Fields whose contents a library reads, so that a `path` in them is not a source."""


def problems_of_named(raw: dict[str, Any], config: Tracked | None) -> Iterator[str]:
    """Say what is wrong with the things that a configuration names, as far as this machine can tell.

    Args:
        raw: The configuration as read, whose data and models are looked for even if something else is wrong with it.
        config: The configuration; None if it is not valid.
    """
    directory = part_of(raw, "data", "directory") or "."
    for name, section in raw.items():
        root = directory if name in ("data", "evaluation") else "."
        if isinstance(root, str):
            yield from _missing_sources(section, name, root)
    tokenizer = config.tokenizer.directory if isinstance(config, Config) else None
    if tokenizer is not None and (reason := problem(tokenizer)):
        yield f"tokenizer.from: {reason}; or give `teacher` or `student`"
    yield from _tokens_in(raw)
    if isinstance(config, Config) and config.export is not None:
        yield from _upload_problems()
    missing = [name for name in DOWNSTREAM_PACKAGES if importlib.util.find_spec(name) is None]
    if missing and part_of(raw, "evaluation", "downstream") is not None:
        yield (
            f"evaluation.downstream: needs {' and '.join(missing)}, not installed here; run "
            "`pip install .[downstream]` in the repository (`make env` has it), or leave evaluation.downstream out"
        )
    if isinstance(config, BaseConfig) and config.evaluation.judge is not None:
        yield from _endpoint_problems(config.evaluation.judge)
    if isinstance(config, Config) and config.teacher.model.endpoint is not None:
        yield from _endpoint_problems(config.teacher.model.endpoint)
    if isinstance(config, System2) and config.reasoner is not None:
        yield from _endpoint_problems(config.reasoner)
    if config is not None and config.runtime.hostfile is not None:
        try:
            read_hosts(config.runtime)
        except ConfigError as error:
            yield str(error)


def part_of(raw: Any, *keys: str) -> Any:
    """Return the value under nested keys; None where a mapping or a key is missing."""
    for key in keys:
        raw = raw.get(key) if isinstance(raw, dict) else None
    return raw


def _missing_sources(section: Any, field: str, root: str) -> Iterator[str]:
    """Say which paths of a section, and of those in it, cannot be read. Relative ones start from `root`."""
    if not isinstance(section, dict):
        return
    path, file = section.get("path"), section.get("file")
    if isinstance(path, str):
        reason = problem(Path(local_path(root), local_path(path), file if isinstance(file, str) else ""))
        if reason:
            yield f"{field}: {reason}"
    for name, part in section.items():
        if name not in LIBRARY_FIELDS:
            yield from _missing_sources(part, f"{field}.{name}", root)


def _tokens_in(value: Any, field: str = "") -> Iterator[str]:
    """Say which fields hold a token of the hub, without quoting it."""
    known = os.environ.get(TOKEN_VARIABLE, "")
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _tokens_in(part, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            yield from _tokens_in(part, field)
    elif isinstance(value, str) and (re.search(HUB_TOKEN, value) or (len(known) >= SHORTEST and known in value)):
        yield f"{field}: holds a token of the hub; take it out and export it as {TOKEN_VARIABLE}, the only place for it"


def _upload_problems() -> Iterator[str]:
    """Say what is missing to upload to the hub, without asking it. The token is never quoted."""
    from huggingface_hub import constants

    token = os.environ.get(TOKEN_VARIABLE, "")
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        yield (
            f"export.hub: {TOKEN_VARIABLE} in the environment is {'no token' if token else 'not set'}; export one that "
            "may write to the hub, or set export: null"
        )
    if constants.HF_HUB_OFFLINE:
        yield "export.hub: HF_HUB_OFFLINE is set, and nothing can be uploaded; unset it, or set export: null"


def _endpoint_problems(endpoint: Endpoint) -> Iterator[str]:
    """Say what is missing to ask an endpoint, without asking it. The key is never quoted."""
    if importlib.util.find_spec("openai") is None:
        yield f"{endpoint.field}: the package openai is not installed; pip install '.[endpoint]'"
    variable, key = endpoint.api_key_variable, os.environ.get(endpoint.api_key_variable, "")
    if not key:
        yield (
            f"{endpoint.field}.api_key_variable: the environment has no {variable}; export it with the endpoint's key "
            f"(any word where the endpoint asks for none), or leave {endpoint.field} out"
        )
    elif not (key.isascii() and key.isprintable() and " " not in key):
        yield (
            f"{endpoint.field}.api_key_variable: {variable} holds blanks, line ends or letters outside ASCII, "
            "which cannot be sent as a key; export it again"
        )
