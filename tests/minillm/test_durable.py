"""A power cut at any moment of the store's work leaves only what the next boot can use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minillm.durable import sync
from minillm.store.artifacts import Store
from minillm.training.checkpoint_record import newest_whole, read_record
from tests.minillm.jobs import worker_environment, write_job
from tests.minillm.trainings import settings, text_inputs
from tests.power_cut import Disk, at_next_boot, cut_during, make_disk

KEY = "k" * 64
COMPLETE = f"""
from minillm.store.artifacts import Store
from minillm.durable import make_folder, sync_tree
store = Store(disk.path / "store")
work = store.work_directory("train", {KEY!r})
make_folder(work / "checkpoints")
(work / "checkpoints" / "state").write_bytes(b"state" * 10000)
sync_tree(work / "checkpoints")
(work / "output" / "model").mkdir()
(work / "output" / "model" / "weights").write_bytes(b"weights" * 10000)
(work / "output" / "table.txt").write_text("table")
store.complete("train", {KEY!r}, {{}})
"""


def test_a_file_system_that_cannot_wait_for_folders_is_taken_as_it_is():
    """Linux's /proc refuses to sync: for folders that is ignored, for files it is an error."""
    sync(Path("/proc/self"))
    with pytest.raises(OSError, match="Invalid argument"):
        sync(Path("/proc/self/status"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with make_disk(tmp_path) as made:
        yield made


@pytest.mark.parametrize("committing", [False, True])
def test_a_power_cut_leaves_the_checkpoint_or_the_whole_artifact(disk: Disk, committing: bool):
    def look(root: Path) -> str:
        store = Store(root / "store")
        artifact = store.find("train", KEY)
        if artifact is not None:
            whole = (Path(artifact.path) / "model" / "weights").read_bytes() == b"weights" * 10000
            return "artifact" if whole and len(artifact.manifest().files) == 2 else "a damaged artifact"
        state = store.work_path("train", KEY) / "checkpoints" / "state"
        return "checkpoint" if state.exists() and state.read_bytes() == b"state" * 10000 else "nothing"

    cut_during(disk, COMPLETE, committing)
    found = at_next_boot(disk, look)
    assert found == sorted(found, reverse=True), "first the checkpoint, then the artifact"
    assert set(found) == {"checkpoint", "artifact"}


def test_a_power_cut_while_training_leaves_a_checkpoint_and_the_weights_it_counts_on(disk: Disk, inputs):
    def look(root: Path) -> str:
        newest = newest_whole(root / "train" / "checkpoints")
        if newest is None:
            return "nothing"
        history = read_record(root / "train" / "checkpoints" / newest).selection["history"]
        best = min(history, key=lambda entry: entry["valid/loss"])["step"]
        moved = root / "train" / "output" / "model"
        kept = moved if moved.exists() else root / "train" / f"best-{best:08d}"
        return newest if load_file(kept / "model.safetensors") else "without weights"

    stage = settings("sft", steps=3, evaluate_every=1, select_by="validation_loss")
    spec = write_job(disk.path / "train", stage, text_inputs(inputs), checkpoint_every=1)
    code = f"from minillm.worker.__main__ import main\nassert main({str(spec)!r}) == 0"
    cut_during(disk, code, committing=True, **worker_environment())
    found = at_next_boot(disk, look)
    assert found == sorted(found), "nothing, then later and later steps"
    assert set(found) == {"nothing", *(f"step-{step:08d}" for step in (1, 2, 3))}
