"""Flows started at once on one store: each stage is computed once, nothing gets mixed up, and no lock remains."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.store.file_versions import file_sha256
from tests.chaos import LOG, family, inspect_tracking, kill, start, write_disturbable
from tests.chaos import Outcome as Tracked
from tests.conftest import ROOT
from tests.flows.test_study import computed
from tests.waiting import wait_for
from tests.workers import workers_in

pytestmark = pytest.mark.long
CHECKPOINT = "work/train-*/checkpoints/step-*/checkpoint.json"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_disturbable(tmp_path, ("minillm",), steps=40)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    """Train with a flow that has the store to itself; return the digests of its weights."""
    folder = tmp_path_factory.mktemp("alone")
    assert start(write_disturbable(folder, ("minillm",), steps=40), folder / "prefect").wait() == 0
    return weights(folder / "store")


def weights(store: Path) -> dict[tuple[str, int], str]:
    """Return the digests of all trained weights, by role and seed."""
    found = {}
    for path in store.glob("artifacts/train-*"):
        settings = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["settings"]
        found[settings["role"], settings["seed"]] = file_sha256(path / "model" / "model.safetensors")
    return found


def tracking(store: Path) -> Tracked:
    found = Tracked()
    inspect_tracking(store, found)
    return found


def test_of_three_at_once_equal_stages_are_computed_once_and_others_stay_apart(config, alone, tmp_path):
    homes = {name: tmp_path / name for name in ("one", "same", "other")}
    flows = [start(config, home, *(["--set", "seed=2"] if name == "other" else [])) for name, home in homes.items()]
    assert [flow.wait(600) for flow in flows] == [0, 0, 0]
    logs = {name: (home / LOG).read_text(encoding="utf-8") for name, home in homes.items()}
    made = {name: {stage: n for stage, n in computed(log).items() if stage != "distill"} for name, log in logs.items()}
    store = tmp_path / "store"
    artifacts = [path.name for path in store.glob("artifacts/*")]
    assert sum(sum(counts.values()) for counts in made.values()) == len(artifacts)
    assert made["one"].get("train minillm", 0) + made["same"].get("train minillm", 0) == 1
    assert made["other"]["train minillm"] == 1
    assert {(role, seed): found for (role, seed), found in weights(store).items() if seed == 1} == alone
    assert len(weights(store)) == 2 * len(alone) == len(set(weights(store).values()))
    assert (tracking(store).running, tracking(store).lost, tracking(store).repeated) == ([], 0, 0)
    verify = [sys.executable, "-m", "flows.store", "--store", str(store), "verify"]
    assert subprocess.run(verify, cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_of_two_at_once_one_that_is_killed_blocks_nothing(config, alone, tmp_path):
    homes, store = (tmp_path / "one", tmp_path / "two"), tmp_path / "store"
    flows = [start(config, home) for home in homes]
    wait_for(lambda: any(store.glob(CHECKPOINT)))
    (worker,) = workers_in(next(store.glob(CHECKPOINT)).parents[2])
    (killed,) = [i for i, home in enumerate(homes) if worker in family(home)]
    assert kill("everything at once", homes[killed], flows[killed], random.Random(0)), "as where a container is lost"
    assert flows[1 - killed].wait(600) == 0
    log = (homes[1 - killed] / LOG).read_text(encoding="utf-8")
    assert "the same stage is being computed elsewhere; waiting for it" in log
    assert re.search("continuing from the checkpoint of step", log)
    assert weights(store) == alone
    assert (tracking(store).lost, tracking(store).repeated) == (0, 0)
