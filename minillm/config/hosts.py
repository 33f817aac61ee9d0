"""The machines of a worker group, from DeepSpeed's hostfile."""

import re
from pathlib import Path

from minillm.config import Runtime
from minillm.errors import ConfigError

HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._:-]*[A-Za-z0-9])?")
"""Name or address of a host, which neither ssh nor a shell can take for an option or a command."""


def read_hosts(runtime: Runtime) -> dict[str, int]:
    """Return the number of processes on each host of `runtime.hostfile`, in its order; they meet on the first host.

    Raises:
        ConfigError: The file is missing or malformed, has an invalid host name, or its slots do not add up to
            `runtime.processes`.
    """
    from deepspeed.launcher.runner import fetch_hostfile  # takes seconds to import

    assert runtime.hostfile is not None
    if not Path(runtime.hostfile).is_file():
        raise ConfigError(f"runtime.hostfile: there is no file {Path(runtime.hostfile).resolve()}")
    try:
        hosts: dict[str, int] = dict(fetch_hostfile(runtime.hostfile))  # type: ignore[arg-type]
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"runtime.hostfile {runtime.hostfile}: {error}; its lines are HOST slots=PROCESSES"
        ) from error
    _require_names(Path(runtime.hostfile))
    if sum(hosts.values()) != runtime.processes:
        raise ConfigError(
            f"runtime.processes is {runtime.processes}, but runtime.hostfile {runtime.hostfile} has "
            f"{sum(hosts.values())} slots; set it to that"
        )
    return hosts


def _require_names(hostfile: Path) -> None:
    for number, line in enumerate(hostfile.read_text(encoding="utf-8").splitlines(), start=1):
        name = next(iter(line.split()), "#")
        if not name.startswith("#") and HOST_NAME.fullmatch(name) is None:
            raise ConfigError(
                f"runtime.hostfile {hostfile}, line {number}: {name!r} is no host; names are letters, digits "
                "and . _ - : and begin and end with a letter or digit (users and ports belong in ~/.ssh/config)"
            )
