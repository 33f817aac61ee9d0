"""Simulated machines: network namespaces, each with an address and an sshd, on the files of this machine."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for

SSHD = "/usr/sbin/sshd"
# Of this process alone, so that nothing is in the way of another run or left in its way by one that was killed.
BRIDGE, NETWORK = f"ml{os.getpid()}", f"10.{64 + os.getpid() // 256 % 64}.{os.getpid() % 256}"
KEEP_NO_HOST_KEYS = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"


def _command(*words: str | Path) -> None:
    done = subprocess.run([*map(str, words)], check=False, capture_output=True, text=True)
    if "Operation not permitted" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"machines of their own need a system that lets root make them: {done.stderr.strip()}")
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr.strip()}"


@contextlib.contextmanager
def machines(folder: Path, count: int, blind: int) -> Iterator[list[str]]:
    """Start machines and yield their addresses; while they run, the `ssh` in PATH reaches them without a password.

    Args:
        folder: Folder for keys; the machines share its subfolder `shared`.
        count: Number of machines.
        blind: Number of machines, the last ones, that see an empty `shared`.
    """
    if os.getuid() != 0 or not Path(SSHD).exists() or shutil.which("ip") is None:
        pytest.skip("machines of their own need root, iproute2 and openssh-server")
    shared = folder / "shared"
    shared.mkdir()
    programs = _write_keys(folder)
    names = {f"{NETWORK}.{number}": f"{BRIDGE}{number}" for number in range(1, count + 1)}
    servers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(programs), prepend=os.pathsep)
        patch.setenv("GLOO_SOCKET_IFNAME", "eth0")
        try:
            _command("ip", "link", "add", BRIDGE, "type", "bridge")
            _command("ip", "address", "add", f"{NETWORK}.254/24", "dev", BRIDGE)
            _command("ip", "link", "set", BRIDGE, "up")
            for number, (address, name) in enumerate(names.items(), start=1):
                _connect(address, name)
                serve = f"exec {SSHD} -D -f {folder / 'sshd'} -o ListenAddress={address}"
                hide = f"mount -t tmpfs none {shared} && " if number > count - blind else ""
                servers.append(subprocess.Popen(["ip", "netns", "exec", name, "sh", "-c", hide + serve]))
            for address in names:
                wait_for(lambda there=address: subprocess.run(["ssh", there, "true"], check=False).returncode == 0)
            yield list(names)
        finally:
            for server in servers:
                server.kill()
                server.wait()
            for name in names.values():
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
                # A namespace lives as long as a process in it; its cable, only as long as both ends.
                subprocess.run(["ip", "link", "delete", f"{name}-out"], check=False, capture_output=True)
            subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)


def _connect(address: str, name: str) -> None:
    _command("ip", "netns", "add", name)
    _command("ip", "link", "add", f"{name}-out", "type", "veth", "peer", "name", "eth0", "netns", name)
    _command("ip", "link", "set", f"{name}-out", "master", BRIDGE, "up")
    _command("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    for interface in ("eth0", "lo"):
        _command("ip", "-n", name, "link", "set", interface, "up")


def _write_keys(folder: Path) -> Path:
    """Write keys and settings of ssh and sshd; return the folder of an `ssh` that uses them."""
    for name in ("host", "user"):
        _command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    files = f"HostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'user.pub'}\nStrictModes no\n"
    (folder / "sshd").write_text(f"{files}UsePAM no\nPidFile none\nPermitRootLogin yes\n", encoding="utf-8")
    (folder / "ssh").write_text(f"IdentityFile {folder / 'user'}\n{KEEP_NO_HOST_KEYS}", encoding="utf-8")
    programs = folder / "programs"
    programs.mkdir()
    (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder / "ssh"} "$@"\n', encoding="utf-8")
    (programs / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    return programs
