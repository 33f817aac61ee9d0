"""A disk whose power can be cut at any moment, to see what the next boot would find on it.

The disk is a file system mounted from an image file. What has not been written yet is not in the image. So a copy of
the image, mounted elsewhere, is what a power cut would leave.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

MEGABYTES = 24
# Nothing reaches the disk but by fsync: no periodic commit, and no automatic flush of data before a rename.
OPTIONS = "loop,commit=3600,noauto_da_alloc"


@dataclass(frozen=True)
class Disk:
    """A mounted image and the copies of it."""

    folder: Path

    @property
    def path(self) -> Path:
        """Folder at which it is mounted."""
        return self.folder / "disk"

    @property
    def image(self) -> Path:
        """Image file that it is mounted from."""
        return self.folder / "disk.img"

    @property
    def cuts(self) -> list[Path]:
        """Images that power cuts have left, in order."""
        return sorted(self.folder.glob("cut-*.img"))

    def cut(self) -> None:
        """Keep the image as a power cut at this moment would leave it."""
        copy = self.folder / f"cut-{len(self.cuts):04}.img"
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copy)], check=True)

    def commit(self) -> None:
        """Write all names and sizes, as the file system does every few seconds, but no data of other files."""
        with (self.path / "of another program").open("w", encoding="utf-8") as stream:
            stream.write("x")
            stream.flush()
            os.fsync(stream.fileno())


@contextlib.contextmanager
def make_disk(folder: Path) -> Iterator[Disk]:
    """Mount an empty ext4 disk; skip the test if none can be mounted."""
    disk = Disk(folder)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("a power cut needs mkfs.ext4")
    subprocess.run(["truncate", "--size", f"{MEGABYTES}M", str(disk.image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", str(disk.image)], check=True)
    with mounted(disk.image, disk.path, OPTIONS):
        yield disk


@contextlib.contextmanager
def mounted(image: Path, folder: Path, options: str = "loop") -> Iterator[None]:
    """Mount an image; yield its folder, and unmount it at the end."""
    folder.mkdir()
    command = ["mount", "-o", options, str(image), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a power cut needs the right to mount a disk: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def cut_at_every_step(disk: Disk, committing: bool) -> None:
    """Cut the power before each rename and each removal on the disk, for as long as this process lives.

    Args:
        disk: Disk that the process works on.
        committing: Whether names and sizes reach the disk before each cut, without the data.
    """
    busy = False

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal busy
        if busy or event not in ("os.rename", "os.remove", "os.rmdir"):
            return
        name = str(arguments[0])
        if Path(name).is_absolute() and not name.startswith(str(disk.path)):  # rmtree: relative to an open folder
            return
        busy = True
        if committing:
            disk.commit()
        disk.cut()
        busy = False

    sys.addaudithook(hook)


def cut_during(disk: Disk, code: str, committing: bool, **variables: str) -> None:
    """Run code in a process of its own, with the power cut at every step and at the end."""
    begin = f"from tests.power_cut import *\ndisk = Disk(Path({str(disk.folder)!r}))\n"
    begin += f"cut_at_every_step(disk, {committing})\n"
    end = f"\nif {committing}:\n    disk.commit()\ndisk.cut()\n"
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", begin + code + end]
    done = subprocess.run(command, cwd=disk.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def at_next_boot(disk: Disk, look: Callable[[Path], str]) -> list[str]:
    """Yield what is found on the disk after each power cut."""
    found = []
    for image in disk.cuts:
        with mounted(image, image.with_suffix("")):
            found.append(look(image.with_suffix("")))
    return found
