"""MLflow's registry: exported models as versions, each once, and which version is an experiment's champion.

The champion of an experiment is the version with the alias `champion` of the registered model with its name; each
version there was champion once, and says which one was before it, so that one can go back through all of them.
"""

import os
import socket
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils import get_results_from_paginated_fn

from tasks.tracking.entries import ModelFacts
from tasks.tracking.tags import KEY_TAG, WEIGHTS_TAG

CHAMPION = "champion"
BEFORE_TAG = "champion.before"
"""Version that was the champion before this one; absent on the first."""
ROLLED_BACK_TAG = "champion.rolled_back"
"""When a version was taken back."""
AT_ONCE = 1000
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers where there is no such model, and no such alias."""


def register(client: MlflowClient, experiment: str, models: Sequence[ModelFacts], run_id: str) -> None:
    """Make versions of those whose artifact is none yet; what is there already is found by one question.

    Args:
        client: Of the registry.
        experiment: With whose name theirs begin.
        models: Exported by the run.
        run_id: Of the run that exported them.
    """
    known = _versions(client, f"name LIKE '{experiment}-%'")
    registered = {(version.name, version.tags.get(KEY_TAG)) for version in known}
    names = {version.name for version in known}
    for facts in models:
        if (facts.name, facts.key) not in registered:
            create_version(client, facts, run_id, known=facts.name in names)


def create_version(client: MlflowClient, facts: ModelFacts, run_id: str, known: bool = False) -> ModelVersion:
    """A new version of a registered model, which is made if need be.

    Args:
        client: Of the registry.
        facts: What it is.
        run_id: Of the run that exported it.
        known: Whether the registered model is there for sure.
    """
    if not known:
        try:
            client.create_registered_model(facts.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    tags = {KEY_TAG: facts.key, "path": facts.source, **facts.tags}
    return client.create_model_version(
        facts.name, _source(facts), run_id, tags, description=facts.description, await_creation_for=0
    )


def champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The present champion, if there is one."""
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise


def crown(client: MlflowClient, facts: ModelFacts, run_id: str, before: ModelVersion | None) -> ModelVersion:
    """Make a new version the champion.

    Args:
        client: Of the registry.
        facts: What it is.
        run_id: Of the run that exported it.
        before: The present champion.
    """
    link = {} if before is None else {BEFORE_TAG: str(before.version)}
    facts = facts.model_copy(update={"tags": facts.tags | link})
    version = create_version(client, facts, run_id, known=before is not None)
    client.set_registered_model_alias(facts.name, CHAMPION, str(version.version))
    return version


def was_rolled_back(client: MlflowClient, name: str, weights: str) -> ModelVersion | None:
    """The version that was champion with these weights and was taken back."""
    versions = _versions(client, f"name = '{name}' AND tags.{WEIGHTS_TAG} = '{weights}'")
    return next((version for version in versions if ROLLED_BACK_TAG in version.tags), None)


def lineage(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    """The present champion, the one before it, and so on to the first."""
    version = champion(client, name)
    while version is not None:
        yield version
        before = version.tags.get(BEFORE_TAG)
        version = None if before is None else client.get_model_version(name, before)


def names_with_champion(client: MlflowClient) -> list[str]:
    """Registered models that have a champion."""
    models = get_results_from_paginated_fn(
        lambda size, token: client.search_registered_models(max_results=size, page_token=token), AT_ONCE
    )
    return [model.name for model in models if CHAMPION in model.aliases]


def _versions(client: MlflowClient, query: str) -> list[ModelVersion]:
    return get_results_from_paginated_fn(
        lambda size, token: client.search_model_versions(query, max_results=size, page_token=token), AT_ONCE
    )


def _source(facts: ModelFacts) -> str:
    """The directory; a server that is reached over HTTP takes none of its own, and is told the machine, too."""
    served = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
    return f"minillm-store://{socket.gethostname()}{facts.source}" if served else facts.source
