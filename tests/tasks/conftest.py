"""Fixtures that the tests of tasks share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks.running import supervision
from tasks.running.forking import ForkedWorker, fork_worker
from tests.mlflow_server import mlflow_server
from tests.small import small_config
from tests.tasks.stages import data_stages, run


@pytest.fixture(scope="session", autouse=True)
def one_template() -> Iterator[None]:
    """Let tests share the process that forks their workers, though pytest names each in the environment."""

    def fork(spec: Path, environment: Mapping[str, str]) -> ForkedWorker:
        return fork_worker(spec, {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(supervision, "fork_worker", fork)
        yield


@pytest.fixture(scope="session")
def computed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compute the artifacts of the data stages, for tests of later stages; keys do not depend on where files are."""
    config = small_config(tmp_path_factory.mktemp("data"))
    run(config, data_stages)
    return Path(config.runtime.store) / "artifacts"


@dataclass
class TrackingServer:
    """A real MLflow server and the folder of its database and files."""

    address: str
    folder: Path


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """Run one server for all tests that only need some server to be there."""
    folder = tmp_path_factory.mktemp("a server?")
    with mlflow_server(folder) as address:
        yield TrackingServer(address, folder)
