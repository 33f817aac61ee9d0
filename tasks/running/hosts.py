"""A worker group on several machines: `python -m tasks.running.hosts SPEC` starts its parts by ssh and outlives them.

Each part depends on its connection. The shell at the other end waits for the end of its standard input, which comes
when this process closes it or dies in whatever way. Then the shell ends that machine's processes: first by SIGTERM
(checkpoint, then leave), after a grace period by SIGKILL.

DeepSpeed's own launcher reads the same hostfile, but it needs pdsh. It ends remote workers only if a SIGINT or SIGTERM
reaches it, and then by a `pkill -f` that also hits other runs on the same machines. Killed outright or cut off, it
leaves workers behind that hold their GPUs and write into the store.
"""

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from minillm.config.hosts import read_hosts
from minillm.durable import write_atomically
from minillm.errors import BAD_INPUT
from minillm.stages import load_job
from tasks.running.process_group import piped, watched
from tasks.running.supervision import TICK_SECONDS, free_port, worker_environment

SSH = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
"""Options of ssh: never ask, and notice within a minute that a machine is gone."""
PASSED = ("NCCL_", "GLOO_", "TORCH_")
"""Prefixes of further environment variables that every machine gets; secrets are not among them."""


class Part:
    """Processes of a group on one machine."""

    def __init__(self, host: str, command: list[str], environment: dict[str, str], spec: Path) -> None:
        """Start the processes.

        Args:
            host: Name of the machine for ssh.
            command: Command to run, with the paths of this machine.
            environment: Variables to set there.
            spec: File that must be readable there, too.
        """
        self.host = host
        guard = f"cd {shlex.quote(str(Path.cwd()))} && test -r {shlex.quote(str(spec))} || exit {BAD_INPUT}"
        variables = [f"{name}={value}" for name, value in environment.items()]
        there = f"{guard}; exec {shlex.join(['env', *variables, *watched(command)])}"
        # In a session of its own: whatever ends this process's group must not end the connections with it.
        self.process = piped(["ssh", *SSH, "--", host, there])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def end(self) -> None:
        """Ask the processes to leave."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def status(self) -> int:
        """Return the exit status, once all lines of the processes are printed."""
        self._reader.join()
        return self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print(line, end="", flush=True)


def main(spec: str) -> int:
    """Run the parts. The first exit status that is not 0 ends the other parts too, and is returned."""
    job = load_job(Path(spec))
    runtime, hosts = job.runtime, read_hosts(job.runtime)
    environment = worker_environment(runtime)
    environment |= {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    meeting = [f"--master-addr={next(iter(hosts))}", f"--master-port={free_port()}", f"--nnodes={len(hosts)}"]
    asked: list[int] = []

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask_to_stop)
    parts = []
    for number, (host, slots) in enumerate(hosts.items()):
        launcher = [sys.executable, "-m", "torch.distributed.run", *meeting, f"--node-rank={number}"]
        command = [*launcher, f"--nproc-per-node={slots}", "-m", "minillm.worker", spec]
        parts.append(Part(host, command, environment, Path(spec)))
    while not asked and any(part.process.poll() is None for part in parts):
        if any(part.process.poll() for part in parts):
            break
        time.sleep(TICK_SECONDS)
    for part in parts:
        part.end()
    statuses = {part.host: part.status() for part in parts}
    for host in (host for host, status in statuses.items() if status == BAD_INPUT):
        shared = "this folder and runtime.store must be on a file system that all hosts share"
        write_atomically(job.work / "error.txt", f"{host} does not have {spec}: {shared}")
    return next((status for status in statuses.values() if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
