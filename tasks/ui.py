"""`make ui` and `make serve`: the pages of Prefect and MLflow on this machine, and a worker, all ending together."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import psutil

from minillm.files import local_path
from tasks.settings import MLFLOW_UI, PREFECT_UI, answers, set_mlflow_defaults, set_prefect_defaults, shown
from tasks.supervision import GRACE_SECONDS

START_SECONDS = 120.0
FLOW_RUN = "prefect.engine"
"""Module in whose process a worker runs a flow, in a session of its own."""


def main() -> int:
    """Serve until Ctrl-C, or until one of the processes ends: 0 then, 2 where a port is taken."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.ui",
        description="Serve Prefect's and MLflow's pages until Ctrl-C.",
        epilog="MINILLM_PREFECT_UI and MINILLM_MLFLOW_UI change their addresses, for runs and pages alike; databases "
        "other than SQLite: docs/production.md.",
    )
    parser.add_argument("--store", default=".minillm", help="runtime.store of the runs to show (default: %(default)s)")
    parser.add_argument(
        "--worker",
        action="store_true",
        help="also deploy prefect.yaml, and run what is scheduled or started in the page",
    )
    arguments = parser.parse_args()
    store = local_path(arguments.store).resolve()
    store.mkdir(parents=True, exist_ok=True)
    set_prefect_defaults()
    set_mlflow_defaults()
    commands = {
        f"Prefect {PREFECT_UI}": ["prefect", "server", "start", *_address(PREFECT_UI)],
        f"MLflow  {MLFLOW_UI}": ["mlflow", "server", *_address(MLFLOW_UI), "--workers", "1", *_mlflow_stores(store)],
    }
    if "PREFECT_API_URL" in os.environ:
        print(f"Prefect is served already, at {shown(os.environ['PREFECT_API_URL']).removesuffix('/api')}", flush=True)
        commands.pop(f"Prefect {PREFECT_UI}")
    if "MLFLOW_TRACKING_URI" in os.environ:
        print(f"MLflow runs are kept at {shown(os.environ['MLFLOW_TRACKING_URI'])}", flush=True)
        commands.pop(f"MLflow  {MLFLOW_UI}")
    elif "MLFLOW_BACKEND_STORE_URI" in os.environ:  # runs reach that database through the server alone
        os.environ["MLFLOW_TRACKING_URI"] = MLFLOW_UI
    taken = [page for page in commands if _taken(page.split()[1])]
    for page in taken:
        name = "MINILLM_" + page.split()[0].upper() + "_UI"
        print(f"{page}: something else listens there; stop it, or set {name} to another address", file=sys.stderr)
    if taken:
        return 2
    if "MLFLOW_TRACKING_URI" not in os.environ and not (store / "mlflow.db").exists():
        from tasks.mlflow_client import connect

        connect(store)  # makes it whole, which a server that is killed meanwhile would not
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with contextlib.suppress(KeyboardInterrupt):
            processes += [_start(command, quiet=True) for command in commands.values()]
            print("\n".join([*commands, "Ctrl-C stops them"] if processes else []), flush=True)
            if arguments.worker:
                processes.append(_start_worker(processes))
            while processes and all(process.poll() is None for process in processes):
                time.sleep(0.2)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # asked twice, it still stops them all
        for process in reversed(processes):
            _stop(process)
    return max(
        (abs(process.returncode) for process in processes if process.returncode not in (0, -signal.SIGTERM)), default=0
    )


def _start_worker(servers: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Deploy and start a worker, once Prefect answers."""
    os.environ.setdefault("PREFECT_API_URL", f"{PREFECT_UI}/api")
    url, deadline = os.environ["PREFECT_API_URL"].removesuffix("/api"), time.monotonic() + START_SECONDS
    while not answers(url):
        if time.monotonic() > deadline or any(server.poll() is not None for server in servers):
            raise SystemExit(f"Prefect does not answer at {url}")
        time.sleep(0.2)
    from tasks.deploying import DeployError, deploy, worker_command

    try:
        print(f"deployed: {', '.join(deploy())}", flush=True)
    except DeployError as error:
        raise SystemExit(str(error)) from error
    return _start(worker_command())


def _start(command: list[str], quiet: bool = False) -> subprocess.Popen[bytes]:
    output = subprocess.DEVNULL if quiet else None
    # Where the browser finds Prefect's API: left alone, its page asks Prefect's own default port.
    environment = {"PREFECT_SERVER_UI_API_URL": f"{PREFECT_UI}/api"} | os.environ
    return subprocess.Popen([sys.executable, "-m", *command], stdout=output, env=environment, start_new_session=True)


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


def _mlflow_stores(store: Path) -> list[str]:
    """Where MLflow keeps runs and files: in the store, unless its own environment variables name another place."""
    if "MLFLOW_BACKEND_STORE_URI" not in os.environ:
        files = ["--default-artifact-root", (store / "mlartifacts").as_uri()]
        return ["--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}", *files]
    if "MLFLOW_ARTIFACTS_DESTINATION" in os.environ:
        return []
    return ["--artifacts-destination", (store / "mlartifacts").as_uri()]


def _address(url: str) -> list[str]:
    place = urllib.parse.urlsplit(url)
    return ["--host", str(place.hostname), "--port", str(place.port)]


def _taken(url: str) -> bool:
    place = urllib.parse.urlsplit(url)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
        try:
            probe.bind((place.hostname, place.port))
        except OSError:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
