"""A run whose student cannot be uploaded: a refusal is told before anything is computed, and results are shown."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from tests.flows.test_distill import Finished, distill
from tests.minillm.hub import Hub, serve
from tests.small import write_short_experiment

TOKEN = "hf_" + "aB3" * 12
Uploading = Callable[[Path, str], Finished]
UPLOAD = ("--set", "export.hub=me/talker", "--set", "export.method=sft")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub({}, token=TOKEN)) as running:
        yield running


@pytest.fixture
def uploading(prefect_server: None, hub: Hub) -> Uploading:
    """Distil a configuration with a token, and upload the student."""

    def run(config: Path, token: str) -> Finished:
        server = str(PREFECT_API_URL.value())
        return distill(config, *UPLOAD, HF_ENDPOINT=hub.endpoint, HF_TOKEN=token, PREFECT_API_URL=server)

    return run


def test_a_token_that_may_not_write_is_refused_before_anything_is_computed(tmp_path: Path, uploading: Uploading):
    refused = uploading(write_short_experiment(tmp_path), "hf_" + "zZ9" * 12)
    assert refused.status != 0
    assert "does not accept the token in HF_TOKEN (401); export one that may write to me/talker" in refused.log
    assert refused.states().keys() <= {"distill"}
    assert "zZ9" not in refused.log


def test_an_upload_that_fails_for_good_keeps_the_table(tmp_path: Path, hub: Hub, uploading: Uploading):
    config = write_short_experiment(tmp_path)
    hub.faults = [("repos/create", 500), ("/commit/", 403)]
    failed = uploading(config, TOKEN)
    assert failed.status != 0
    assert "the upload at the end of the run may fail" in failed.log
    assert failed.states()["upload sft"] == "Failed"
    assert "| sft" in failed.output
    assert "model sft" in failed.output
    assert "hub sft" not in failed.output
    done = uploading(config, TOKEN)
    assert done.status == 0, done.log[-3000:]
    assert {state for label, state in done.states().items() if label != "upload sft"} <= {
        "Completed",
        "Cached",
        "Skipped",
    }
    assert f"{hub.endpoint}/me/talker/tree/{hub.commits[-1]}" in done.output
