"""What the tests of tasks share."""

from pathlib import Path

import pytest

from tests.small import small_config
from tests.tasks.stages import data_stages, run


@pytest.fixture(scope="session")
def computed_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of the data stages, for tests of what comes after; keys do not depend on where files lie."""
    config = small_config(tmp_path_factory.mktemp("data"))
    run(config, data_stages)
    return Path(config.runtime.store) / "artifacts"
