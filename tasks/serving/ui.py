"""`make ui` and `make serve`: the pages of Prefect and MLflow on this machine, and a worker, all ending together."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import psutil

from minillm.durable import make_folder
from minillm.errors import ConfigError
from minillm.files import local_path
from minillm.redaction import redacted
from minillm.worker.template import GRACE_SECONDS
from tasks.environment.credentials import START_SECONDS, Server, died, make_login, proves, record, recorded, running
from tasks.environment.settings import (
    MLFLOW_UI,
    PREFECT_UI,
    require_address,
    set_mlflow_defaults,
    set_prefect_defaults,
)
from tasks.serving.apps import further_origins, server_command, server_environment
from tasks.tracking.database import DATABASE, FILES, database_uri

FLOW_RUN = "prefect.engine"
"""Module in whose process a worker runs a flow, in a session of its own."""
NAMES = {"prefect": "Prefect", "mlflow": "MLflow "}


def serve(store_given: str, worker: bool) -> int:
    """Serve the pages that are not served yet until Ctrl-C, or until one of the processes ends.

    Args:
        store_given: `runtime.store` of the runs to show.
        worker: Whether to deploy prefect.yaml too, and run what is scheduled or started in the page.

    Returns:
        The exit status.

    Raises:
        ConfigError: An address or an origin is malformed.
        StageError: A server's login could not be kept private.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    store = local_path(store_given).resolve()
    set_prefect_defaults()
    set_mlflow_defaults()
    for kind in NAMES:
        further_origins(kind)
    make_folder(store)
    servers = servers_to_start(store)
    environments = {server: os.environ | server_environment(server) for server in servers}
    processes: list[subprocess.Popen[bytes]] = []
    lost = False
    with contextlib.ExitStack() as records:
        paths = [records.enter_context(recorded(server)) for server in servers]
        try:
            with contextlib.suppress(KeyboardInterrupt):
                for server, environment in environments.items():
                    places = _mlflow_places(store) if server.kind == "mlflow" else {}
                    processes.append(_start(server_command(server), environment | places, quiet=True))
                    print(f"{NAMES[server.kind]} {server.address}", flush=True)
                for path in paths[:1]:
                    print(f"Log in with what {path} says under login; you alone can read it", flush=True)
                    print("Ctrl-C stops them", flush=True)
                if worker:
                    processes.append(_start_worker(servers, processes))
                while processes and all(process.poll() is None for process in processes):
                    time.sleep(0.2)
                lost = bool(processes)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # asked twice, it still stops them all
            for process in reversed(processes):
                _stop(process)
    if lost:  # the next start has their login, with which clients that outlive them go on
        for server in servers:
            record(server)
    codes = [process.returncode for process in processes]
    return max((abs(code) for code in codes if code not in (0, -signal.SIGTERM)), default=0)


def servers_to_start(store: Path) -> list[Server]:
    """The servers to start; the environment is told where the others are, and where MLflow's keeps its runs."""
    login = _login(store)
    servers: list[Server] = []
    if "PREFECT_API_URL" in os.environ:
        print(
            f"Prefect is served already, at {redacted(os.environ['PREFECT_API_URL']).removesuffix('/api')}", flush=True
        )
    else:
        before = died(kind="prefect", wanted=PREFECT_UI)
        server = Server("prefect", PREFECT_UI, _free_address("prefect", PREFECT_UI, before), str(store), login)
        os.environ |= server.client_environment
        servers.append(server)
    if "MLFLOW_TRACKING_URI" in os.environ:
        print(f"MLflow runs are kept at {redacted(os.environ['MLFLOW_TRACKING_URI'])}", flush=True)
        return servers
    other = running(kind="mlflow", wanted=MLFLOW_UI, store=str(store))
    if other is not None:
        print(f"MLflow is served already, at {other.address}", flush=True)
        return servers
    before = died(kind="mlflow", wanted=MLFLOW_UI, store=str(store))
    server = Server("mlflow", MLFLOW_UI, _free_address("mlflow", MLFLOW_UI, before), str(store), login)
    if "MLFLOW_BACKEND_STORE_URI" in os.environ:  # runs reach that database through the server alone
        os.environ |= server.client_environment | {"MLFLOW_TRACKING_URI": server.address}
    else:
        from tasks.tracking.client import connect

        connect(store)  # made whole, which a server that is killed meanwhile would not, and at home here
    os.environ["MINILLM_MLFLOW_UI"] = server.address
    return [*servers, server]


def _login(store: Path) -> str:
    """The login to ask for: that of the servers which are running, the lasting one, that of dead ones, or a new one."""
    ours = running(kind="prefect", wanted=PREFECT_UI)
    if ours is not None:
        return ours.login
    before = died(kind="prefect", wanted=PREFECT_UI) or died(kind="mlflow", wanted=MLFLOW_UI, store=str(store))
    return make_login(before)


def _start_worker(servers: list[Server], processes: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Deploy and start a worker, once Prefect answers."""
    deadline = time.monotonic() + START_SECONDS
    for server in (server for server in servers if server.kind == "prefect"):
        while not proves(server):
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                raise SystemExit(f"Prefect does not answer at {server.address}")
            time.sleep(0.2)
    from tasks.serving.deploying import POOL, DeployError, deploy

    try:
        print(f"deployed: {', '.join(deploy())}", flush=True)
    except DeployError as error:
        raise SystemExit(str(error)) from error
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    return _start(command, dict(os.environ))


def _start(command: list[str], environment: dict[str, str], quiet: bool = False) -> subprocess.Popen[bytes]:
    output = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(command, stdout=output, env=environment, start_new_session=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process; first the flow runs that a worker has started, which leave at a checkpoint."""
    with contextlib.suppress(psutil.NoSuchProcess):
        runs = [child for child in psutil.Process(process.pid).children() if FLOW_RUN in child.cmdline()]
        for run in runs:
            run.terminate()
        psutil.wait_procs(runs, GRACE_SECONDS + 15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _mlflow_places(store: Path) -> dict[str, str]:
    """Where MLflow keeps runs and files: in the store, unless its own environment variables name another place."""
    files = (store / FILES).as_uri()
    if "MLFLOW_BACKEND_STORE_URI" not in os.environ:  # runs write there without the server, too
        place = {"MLFLOW_BACKEND_STORE_URI": database_uri(store / DATABASE), "MLFLOW_DEFAULT_ARTIFACT_ROOT": files}
        return place | {"MLFLOW_ARTIFACTS_DESTINATION": files}
    defaults = {"MLFLOW_ARTIFACTS_DESTINATION": files, "MLFLOW_DEFAULT_ARTIFACT_ROOT": "mlflow-artifacts:/"}
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def _free_address(kind: Literal["prefect", "mlflow"], wanted: str, before: Server | None) -> str:
    """The address wanted, or one with another port where that is taken, which is said.

    Args:
        kind: Of the server.
        wanted: Its user's choice.
        before: The server that died; its clients call at the address that it had.

    Raises:
        ConfigError: There is no such address on this machine.
    """
    name, place = f"MINILLM_{kind.upper()}_UI", wanted if before is None else before.address
    require_address(kind, wanted)
    host, port = require_address(kind, place)
    try:
        return _address(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise ConfigError(f"{name}: cannot serve at {wanted}: {error.strerror or error}; name another") from error
    free = _address(host, 0)
    print(f"{place} is taken by something else; {NAMES[kind].strip()} is served at {free} instead", flush=True)
    return free


def _address(host: str, port: int) -> str:
    """An address that a server can take; port 0 is for any."""
    with socket.create_server((host, port)) as probe:  # reusable at once, as the servers' own
        return f"http://{host}:{probe.getsockname()[1]}"
