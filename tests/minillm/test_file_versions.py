"""A file that is written to while it is read is noticed; one that is left alone is trusted."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minillm.store.file_versions import SETTLED_NANOSECONDS, Snapshot, known_sha256

TICK_SECONDS = 0.02
"""One tick of a file system's clock, on the slowest kernels."""


def rewrite(path: Path, text: str) -> None:
    """Write a text and restore the file's former modification time."""
    facts = path.stat()
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def replace_by_copy(path: Path) -> None:
    path.with_name("copy").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    os.utime(path.with_name("copy"), ns=(0, path.stat().st_mtime_ns))
    path.with_name("copy").replace(path)


@pytest.mark.parametrize(
    ("act", "written"),
    [
        (lambda path: path.write_text("ab", encoding="utf-8"), True),
        (lambda path: rewrite(path, "b"), True),
        (lambda path: rewrite(path, "a"), True),
        (replace_by_copy, True),
        (lambda path: path.unlink(), True),
        (lambda path: (path.parent / "other").write_text("c", encoding="utf-8"), True),
        (lambda path: (path.parent / ".hidden").write_text("c", encoding="utf-8"), False),
        (lambda path: path.chmod(0o600), False),
        (lambda path: (path.parent / ".backup").hardlink_to(path), False),
        (lambda path: path.read_text(encoding="utf-8"), False),
    ],
)
def test_every_write_is_noticed_even_if_the_same_bytes_are_there_again(
    tmp_path: Path, act: Callable[[Path], object], written: bool
):
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("a", encoding="utf-8")
    before = Snapshot.take(path.parent)
    time.sleep(TICK_SECONDS)
    act(path)
    assert bool(before.written()) == written


def test_a_cache_may_grow(tmp_path: Path):
    (tmp_path / "file").write_text("a", encoding="utf-8")
    before = Snapshot.take(tmp_path, grows=True)
    (tmp_path / "other").write_text("b", encoding="utf-8")
    assert before.written() == []
    (tmp_path / "file").unlink()
    assert before.written() == [tmp_path / "file"]


def test_a_digest_is_that_of_the_bytes_whatever_the_times_say(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("a", encoding="utf-8")
    assert not Snapshot.take(path).settled, "another write may follow within the same tick"
    time.sleep(SETTLED_NANOSECONDS / 1e9 + TICK_SECONDS)
    before, known = Snapshot.take(path), known_sha256(path)
    assert before.certain
    rewrite(path, "b")
    assert known_sha256(path) != known
    assert not before.certain
