"""The store's artifacts are complete or invisible, trusted only if intact, and never computed twice at once."""

import json
import logging
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from minillm.errors import StageError
from minillm.store.artifacts import CLOCKED, Store
from minillm.store.manifest import MANIFEST, Artifact, seal, text_digest, unseal
from tasks.store import altered


def complete(store: Store, key: str = "k" * 64, text: str = "result", metrics: str = "{}") -> Artifact:
    output = store.work_directory("score", key) / "output"
    (output / "sub").mkdir(exist_ok=True)
    (output / "sub" / "table.txt").write_text(text, encoding="utf-8")
    for name in CLOCKED:
        (output / name).write_text(metrics, encoding="utf-8")
    return store.complete("score", key, {"settings": {"a": 1}})


def test_an_unfinished_result_is_invisible_and_its_work_survives(tmp_path):
    store = Store(tmp_path)
    (store.work_directory("score", "k" * 64) / "output" / "half.txt").write_text("hal", encoding="utf-8")
    assert store.find("score", "k" * 64) is None
    assert (Store(tmp_path).work_directory("score", "k" * 64) / "output" / "half.txt").read_text(
        encoding="utf-8"
    ) == "hal"


def test_a_completed_result_is_found_by_its_key_alone(tmp_path):
    artifact = complete(Store(tmp_path))
    assert Store(tmp_path).find("score", "k" * 64) == artifact
    assert Store(tmp_path).find("score", "j" * 64) is None
    manifest = artifact.manifest()
    assert manifest.settings == {"a": 1}
    assert manifest.files["sub/table.txt"].bytes == len("result")
    assert not (tmp_path / "work" / f"score-{'k' * 16}").exists()


def test_a_part_of_a_result_is_the_same_whatever_lies_beside_it(tmp_path):
    store = Store(tmp_path)

    def part(key: str, inside: str, beside: str) -> Artifact:
        output = store.work_directory("prepare", key * 64) / "output"
        for folder, text in (("tokenizer", inside), ("tokenizers", beside)):
            (output / folder).mkdir()
            (output / folder / "a.json").write_text(text, encoding="utf-8")
        return store.complete("prepare", key * 64, {}).part("tokenizer")

    first = part("a", "red", "one")
    assert (Path(first.path) / "a.json").read_text(encoding="utf-8") == "red"
    assert part("b", "red", "two").digest == first.digest
    assert part("c", "blue", "one").digest != first.digest


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "sub" / "table.txt").unlink(),
        lambda path: (path / "sub" / "table.txt").write_text("resulT", encoding="utf-8"),  # the same size
        lambda path: (path / "manifest.json").write_text("{", encoding="utf-8"),
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


def damaged_manifests(text: bytes, draw: random.Random) -> dict[str, bytes]:
    """Return damaged manifests: cut off, with a bit flipped, and with entries of any depth missing or retyped."""
    found = {f"cut off at {length}": text[:length] for length in draw.sample(range(len(text)), 40)}
    for position in draw.sample(range(len(text)), 300):
        bit = draw.randrange(8)
        found[f"bit {bit} of byte {position}"] = bytes(
            [*text[:position], text[position] ^ 1 << bit, *text[position + 1 :]]
        )
    facts = json.loads(text)
    for names in paths_in(facts):
        for value in (None, 7, "x", [], {}, [1], {"a": 1}):
            found[f"{names} is {value}"] = json.dumps(
                changed(facts, names, lambda parent, name, v=value: {**parent, name: v})
            ).encode()
        found[f"no {names}"] = json.dumps(
            changed(facts, names, lambda parent, name: {k: v for k, v in parent.items() if k != name})
        ).encode()
    whole = [b"", b"null", b"[]", b"{}", b"7", b"[" * 100_000, b"\xff\xfe", text + b" ", text.replace(b"\n", b"\r\n")]
    return found | {f"all of it is {data[:9]!r}": data for data in whole}


def paths_in(facts: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = [
        path for name, value in facts.items() if isinstance(value, dict) for path in paths_in(value, (*above, name))
    ]
    return [*((*above, name) for name in facts), *below]


def changed(
    facts: dict[str, Any], names: tuple[str, ...], change: Callable[[dict[str, Any], str], Any]
) -> dict[str, Any]:
    name, *rest = names
    return {**facts, name: changed(facts[name], tuple(rest), change)} if rest else change(facts, name)


def test_every_damage_to_a_manifest_is_noticed_and_crashes_nothing(tmp_path):
    artifact = complete(Store(tmp_path))
    path = Path(artifact.path) / MANIFEST
    whole = path.read_bytes()
    damages = damaged_manifests(whole, random.Random(1))
    assert len(damages) > 400
    for name, data in damages.items():
        if data == whole:  # a value that was there before
            continue
        path.write_bytes(data)
        assert Store(tmp_path).find("score", "k" * 64) is None, name
        assert altered(str(tmp_path)) == [path.parent.name], name
        with pytest.raises(StageError, match=r"manifest\.json cannot be used .* computes it again"):
            artifact.manifest()
    path.write_bytes(whole)
    assert altered(str(tmp_path)) == []
    assert Store(tmp_path).find("score", "k" * 64) == artifact


def test_a_whole_manifest_in_the_place_of_another_is_noticed(tmp_path):
    store = Store(tmp_path)
    first, second = complete(store, "1" * 64), complete(store, "2" * 64)
    (Path(second.path) / MANIFEST).write_bytes((Path(first.path) / MANIFEST).read_bytes())
    assert store.find("score", "2" * 64) is None
    assert altered(str(tmp_path)) == [Path(second.path).name]


def test_what_is_sealed_comes_back_as_it_was():
    facts = {"b": [1, 2.5, float("inf"), None, True], "a": {"é\ud800": "\u2028", "": {}}, "t": 1e-300}
    assert unseal(seal(facts).encode()) == facts


def test_a_store_is_open_to_its_user_alone_and_one_that_is_not_is_told(tmp_path, caplog):
    store = Store(tmp_path / "deep" / "store")
    complete(store)
    folders = [tmp_path / "deep", *(path for path in (tmp_path / "deep").rglob("*") if path.is_dir())]
    made_by_us = [path for path in folders if path.name != "sub"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made_by_us} == {0o700}
    for name, mode, told in (("shared", 0o2770, "may write to"), ("readable", 0o755, "may read"), ("own", 0o700, "")):
        folder = tmp_path / name
        folder.mkdir()
        folder.chmod(mode)
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            Store(folder)
            Store(folder)
        assert len(caplog.messages) == bool(told), "once"
        assert told in "".join(caplog.messages)
        assert stat.S_IMODE(folder.stat().st_mode) == mode, "it may be meant"


def test_the_digest_is_of_the_content_without_clock_times(tmp_path):
    store = Store(tmp_path)
    first = complete(store, "1" * 64, metrics='{"time": 1}')
    second = complete(store, "2" * 64, metrics='{"time": 2}')
    third = complete(store, "3" * 64, text="other")
    assert first.digest == second.digest != third.digest


def test_a_lock_excludes_and_dies_with_its_holder(tmp_path):
    code = (
        "import sys, time\nfrom minillm.store.artifacts import Store\n"
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
