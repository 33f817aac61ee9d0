"""Settings of Prefect, MLflow and their neighbours, as environment variables, set before any of them is imported."""

import os
import urllib.request

from minillm.startup import load

PREFECT_UI = os.environ.get("MINILLM_PREFECT_UI", "http://127.0.0.1:4200")
"""Where `make ui` and `make serve` serve Prefect."""
MLFLOW_UI = os.environ.get("MINILLM_MLFLOW_UI", "http://127.0.0.1:5000")
"""Where they serve MLflow."""

PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FORMAT": "%(asctime)s  %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_FLOW_RUN_FMT": "%(asctime)s  %(flow_name)s: %(message)s",
    "PREFECT_LOGGING_FORMATTERS_STANDARD_TASK_RUN_FMT": "%(asctime)s  %(task_run_name)s: %(message)s",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",  # what the server says while its database restarts
}
MLFLOW_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def set_prefect_defaults() -> None:
    """Set what the user has not set; where `make ui` is running, runs go to its Prefect server and show up live."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ and "PREFECT_PROFILE" not in os.environ and answers(PREFECT_UI):
        os.environ["PREFECT_API_URL"] = f"{PREFECT_UI}/api"


def load_prefect() -> None:
    """Import Prefect with these settings."""
    set_prefect_defaults()
    load("prefect")


def set_mlflow_defaults() -> None:
    """Set what the user has not set: a server that does not answer is given up soon."""
    for name, value in MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)


def answers(server: str) -> bool:
    """Whether a Prefect server is there and healthy."""
    try:
        with urllib.request.urlopen(f"{server}/api/health", timeout=1) as reply:
            return reply.status == 200
    except OSError:
        return False
