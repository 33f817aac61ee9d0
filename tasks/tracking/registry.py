"""MLflow's registry: exported models as versions, each once, and the champion of an experiment.

The registered model with an experiment's name holds its champions. The version with the alias `champion` is the present
one. Each version names the champion before it, so that one can go back through all of them.
"""

import os
import socket
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tasks.tracking.client import all_pages
from tasks.tracking.entries import ModelFacts
from tasks.tracking.tags import KEY_TAG, WEIGHTS_TAG

CHAMPION = "champion"
BEFORE_TAG = "champion.before"
"""Tag on a champion: version of the champion before it; absent on the first."""
ROLLED_BACK_TAG = "champion.rolled_back"
"""Tag on a version: time at which it was taken back."""
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's answers if there is no such model, or no such alias."""


def register(client: MlflowClient, experiment: str, models: Sequence[ModelFacts], run_id: str) -> None:
    """Make versions of the exported models that have none yet.

    Args:
        client: Client of the registry.
        experiment: Name of the experiment, with which the models' names begin.
        models: Models that the run exported.
        run_id: Id of the run.
    """
    known: list[ModelVersion] = all_pages(client.search_model_versions, filter_string=f"name LIKE '{experiment}-%'")
    registered = {(version.name, version.tags.get(KEY_TAG)) for version in known}
    names = {version.name for version in known}
    for facts in models:
        if (facts.name, facts.key) not in registered:
            create_version(client, facts, run_id, known=facts.name in names)


def create_version(client: MlflowClient, facts: ModelFacts, run_id: str, known: bool = False) -> ModelVersion:
    """Make a new version of a registered model, and the model too if it is missing.

    Args:
        client: Client of the registry.
        facts: The exported model.
        run_id: Id of the run that exported it.
        known: Whether the registered model surely exists.
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
    """Return the present champion; None if there is none."""
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise


def crown(client: MlflowClient, facts: ModelFacts, run_id: str, before: ModelVersion | None) -> ModelVersion:
    """Make a new version the champion.

    Args:
        client: Client of the registry.
        facts: The exported model.
        run_id: Id of the run that exported it.
        before: The present champion.
    """
    link = {} if before is None else {BEFORE_TAG: str(before.version)}
    facts = facts.model_copy(update={"tags": facts.tags | link})
    version = create_version(client, facts, run_id, known=before is not None)
    client.set_registered_model_alias(facts.name, CHAMPION, str(version.version))
    return version


def was_rolled_back(client: MlflowClient, name: str, weights: str) -> ModelVersion | None:
    """Return the version that was champion with these weights and was taken back; None if there is none."""
    query = f"name = '{name}' AND tags.{WEIGHTS_TAG} = '{weights}'"
    versions: list[ModelVersion] = all_pages(client.search_model_versions, filter_string=query)
    return next((version for version in versions if ROLLED_BACK_TAG in version.tags), None)


def lineage(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    """Yield the present champion, the one before it, and so on to the first."""
    version = champion(client, name)
    while version is not None:
        yield version
        before = version.tags.get(BEFORE_TAG)
        version = None if before is None else client.get_model_version(name, before)


def names_with_champion(client: MlflowClient) -> list[str]:
    """Return the names of the registered models that have a champion."""
    return [model.name for model in all_pages(client.search_registered_models) if CHAMPION in model.aliases]


def _source(facts: ModelFacts) -> str:
    """Return the directory of a model, with this machine's name for a server that is reached over HTTP.

    Such a server takes no directory that could be its own.
    """
    served = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
    return f"minillm-store://{socket.gethostname()}{facts.source}" if served else facts.source
