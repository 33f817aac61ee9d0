"""The machines of a worker group, from DeepSpeed's hostfile."""

from pathlib import Path

from minillm.config import Runtime
from minillm.errors import ConfigError


def read_hosts(runtime: Runtime) -> dict[str, int]:
    """Processes of each host of `runtime.hostfile`, in its order; the first one is where they meet.

    Raises:
        ConfigError: The file is missing or malformed, or has other than `runtime.processes` slots.
    """
    from deepspeed.launcher.runner import fetch_hostfile  # takes seconds to import

    assert runtime.hostfile is not None
    if not Path(runtime.hostfile).is_file():
        raise ConfigError(f"runtime.hostfile: there is no file {Path(runtime.hostfile).resolve()}")
    try:
        hosts: dict[str, int] = dict(fetch_hostfile(runtime.hostfile))  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(
            f"runtime.hostfile {runtime.hostfile}: {error}; its lines are HOST slots=PROCESSES"
        ) from error
    if sum(hosts.values()) != runtime.processes:
        raise ConfigError(
            f"runtime.processes is {runtime.processes}, but runtime.hostfile {runtime.hostfile} has "
            f"{sum(hosts.values())} slots; set it to that"
        )
    return hosts
