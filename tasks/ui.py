"""`make ui`: the pages of Prefect and MLflow on this machine, both ending together."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tasks.settings import MLFLOW_UI, PREFECT_UI, set_mlflow_defaults, set_prefect_defaults


def main() -> int:
    """Serve until Ctrl-C, or until one of the servers ends."""
    parser = argparse.ArgumentParser(prog="python -m tasks.ui", description="Serve Prefect's and MLflow's pages.")
    parser.add_argument("--store", default=".minillm", help="runtime.store of the runs to show (default: %(default)s)")
    store = Path(parser.parse_args().store).resolve()
    store.mkdir(parents=True, exist_ok=True)
    set_prefect_defaults()
    set_mlflow_defaults()
    address = ["--host", "127.0.0.1", "--port"]
    commands = {
        f"Prefect {PREFECT_UI}": ["prefect", "server", "start", *address, PREFECT_UI.rsplit(":", 1)[1]],
        f"MLflow  {MLFLOW_UI}": [
            *("mlflow", "server", *address, MLFLOW_UI.rsplit(":", 1)[1], "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}"),
            *("--default-artifact-root", (store / "mlartifacts").as_uri()),
        ],
    }
    if "PREFECT_API_URL" in os.environ:
        print(f"Prefect is served already, at {os.environ['PREFECT_API_URL'].removesuffix('/api')}", flush=True)
        commands.pop(f"Prefect {PREFECT_UI}")
    if "MLFLOW_TRACKING_URI" in os.environ:
        print(f"MLflow runs are kept at {os.environ['MLFLOW_TRACKING_URI']}", flush=True)
        commands.pop(f"MLflow  {MLFLOW_UI}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    servers = [
        subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, start_new_session=True)
        for command in commands.values()
    ]
    print("\n".join([*commands, "Ctrl-C stops them"] if servers else []), flush=True)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            while servers and all(server.poll() is None for server in servers):
                time.sleep(0.2)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # asked twice, it still stops them all
        for server in servers:
            _stop(server)
    return max(
        (abs(server.returncode) for server in servers if server.returncode not in (0, -signal.SIGTERM)), default=0
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main())
