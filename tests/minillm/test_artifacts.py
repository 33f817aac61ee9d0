"""The store: complete or invisible, trusted only when intact, locked against a second computation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import Timeout

from minillm.artifacts import CLOCKED, Artifact, Store, text_digest


def complete(store: Store, key: str = "k" * 64, text: str = "result", metrics: str = "{}") -> Artifact:
    output = store.work_directory("score", key) / "output"
    (output / "sub").mkdir(exist_ok=True)
    (output / "sub" / "table.txt").write_text(text)
    for name in CLOCKED:
        (output / name).write_text(metrics)
    return store.complete("score", key, {"settings": {"a": 1}})


def test_an_unfinished_result_is_invisible_and_its_work_survives(tmp_path):
    store = Store(tmp_path)
    (store.work_directory("score", "k" * 64) / "output" / "half.txt").write_text("hal")
    assert store.find("score", "k" * 64) is None
    assert (Store(tmp_path).work_directory("score", "k" * 64) / "output" / "half.txt").read_text() == "hal"


def test_a_completed_result_is_found_by_its_key_alone(tmp_path):
    artifact = complete(Store(tmp_path))
    assert Store(tmp_path).find("score", "k" * 64) == artifact
    assert Store(tmp_path).find("score", "j" * 64) is None
    manifest = artifact.manifest()
    assert manifest["settings"] == {"a": 1}
    assert manifest["files"]["sub/table.txt"]["bytes"] == len("result")
    assert not (tmp_path / "work" / f"score-{'k' * 16}").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "sub" / "table.txt").unlink(),
        lambda path: (path / "sub" / "table.txt").write_text("resulT"),  # the same size
        lambda path: (path / "manifest.json").write_text("{"),
        lambda path: (path / "manifest.json").unlink(),
    ],
)
def test_a_damaged_result_is_not_trusted_and_can_be_computed_again(tmp_path, damage):
    store = Store(tmp_path)
    artifact = complete(store)
    damage(Path(artifact.path))
    assert store.find("score", "k" * 64) is None
    again = complete(store)
    assert again.digest == artifact.digest
    assert store.find("score", "k" * 64) == again


def test_the_digest_is_of_the_content_without_clock_times(tmp_path):
    store = Store(tmp_path)
    first = complete(store, "1" * 64, metrics='{"time": 1}')
    second = complete(store, "2" * 64, metrics='{"time": 2}')
    third = complete(store, "3" * 64, text="other")
    assert first.digest == second.digest != third.digest


def test_a_lock_excludes_and_dies_with_its_holder(tmp_path):
    code = (
        "import sys, time\nfrom minillm.artifacts import Store\n"
        f"lock = Store({str(tmp_path)!r}).lock('k' * 64)\nlock.acquire()\nprint('held', flush=True)\ntime.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    lock = Store(tmp_path).lock("k" * 64)
    with pytest.raises(Timeout):
        lock.acquire(timeout=0.1)
    holder.kill()
    holder.wait()
    with lock.acquire(timeout=5):
        pass


def test_text_digest_ignores_the_order_of_keys():
    assert text_digest({"a": 1, "b": [1, 2]}) == text_digest(json.loads('{"b": [1, 2], "a": 1}'))
    assert text_digest({"a": 1}) != text_digest({"a": 2})
