"""Settings of Prefect, MLflow and related libraries, as environment variables set before any of them is imported."""

import contextlib
import functools
import os
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from minillm.durable import make_folder
from minillm.errors import ConfigError, StageError
from minillm.worker.startup import load
from tasks.environment.credentials import running, running_at

PREFECT_UI = os.environ.get("MINILLM_PREFECT_UI") or "http://127.0.0.1:4200"
"""Address at which `make ui` and `make serve` serve Prefect."""
MLFLOW_UI = os.environ.get("MINILLM_MLFLOW_UI") or "http://127.0.0.1:5000"
"""Address at which they serve MLflow."""

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


HOME_FOLDERS = {
    "PREFECT_HOME": "~/.prefect",
    "XDG_CACHE_HOME": "~/.cache",
    "XDG_CONFIG_HOME": "~/.config",
    "TRITON_HOME": "~/.triton",
}
"""Default folders of Prefect, and of Hugging Face, matplotlib and Triton, by the variable that moves them."""
LOOPBACK = ("localhost", "127.0.0.1")
"""Names of this machine under which its servers answer. `::1` is not one of them: they listen on IPv4."""
PLACES = (
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_PROFILE",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_BACKEND_STORE_URI",
    *HOME_FOLDERS,
)
"""Variables that count as unset if they are empty: for us, for the libraries and for processes started here."""


def parts_of(address: str) -> SplitResult | None:
    """Return the parts of an address of scheme, host and port; None if it is malformed or has anything else."""
    with contextlib.suppress(ValueError):  # from a port that is not a number, for example
        place = urlsplit(address)
        more = place.path.strip("/") or place.query or place.fragment or "@" in place.netloc
        if place.hostname and place.port != 0 and not more:
            return place
    return None


def require_address(kind: str, wanted: str) -> tuple[str, int]:
    """Return the host and port at which Prefect or MLflow is to be served.

    Args:
        kind: `prefect` or `mlflow`.
        wanted: The address as its variable gives it.

    Raises:
        ConfigError: If the address is malformed, or an IPv6 one.
    """
    name, place = f"MINILLM_{kind.upper()}_UI", parts_of(wanted)
    if place is None or place.scheme != "http" or place.port is None:
        raise ConfigError(f"{name}: {wanted!r} is not an address to serve at; give one such as http://127.0.0.1:4200")
    host = str(place.hostname)
    if ":" in host:
        raise ConfigError(f"{name}: nothing is served at an IPv6 address such as {wanted}; give an IPv4 one")
    return host, place.port


@contextlib.contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """End the process with a message and status 2 if settings are wrong, or on the given errors."""
    try:
        yield
    except (ConfigError, StageError, *errors) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error


def set_prefect_defaults() -> None:
    """Set what the user has not set; while `make ui` is running, runs go to its Prefect server and show up live."""
    _set_defaults(PREFECT_DEFAULTS)
    use_writable_folders()
    if "PREFECT_API_URL" in os.environ:
        server = running_at("prefect", os.environ["PREFECT_API_URL"].rstrip("/").removesuffix("/api"))
        if server is not None:
            os.environ.setdefault("PREFECT_API_AUTH_STRING", server.login)
    elif "PREFECT_PROFILE" not in os.environ and (server := running(kind="prefect", wanted=PREFECT_UI)) is not None:
        os.environ |= server.client_environment


def load_prefect() -> None:
    """Import Prefect with these settings; wrong ones end the process with a message."""
    with refusing():
        set_prefect_defaults()
    load("prefect")


def set_mlflow_defaults() -> None:
    """Set what the user has not set: short timeouts, and the login if the tracking server is one of ours."""
    _set_defaults(MLFLOW_DEFAULTS)
    server = running_at("mlflow", os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/"))
    if server is not None and not {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"} & set(os.environ):
        os.environ |= server.client_environment


@functools.cache
def mlflow_pages(store: Path) -> str:
    """Return the address of MLflow's pages for a store: that of this user's running server, or of the one to come."""
    server = running(kind="mlflow", wanted=MLFLOW_UI, store=str(store))
    return MLFLOW_UI if server is None else server.address


def reach_this_machine_directly() -> None:
    """Keep requests to this machine away from the user's proxies, in this process and in those that it starts."""
    proxies = urllib.request.getproxies_environment()
    if not proxies:
        return
    names = [name.strip() for name in proxies.get("no", "").split(",") if name.strip()]
    if names != ["*"]:
        direct = ",".join(dict.fromkeys([*names, *LOOPBACK, "::1"]))
        os.environ |= {"NO_PROXY": direct, "no_proxy": direct}  # libraries differ in which of them they read


def _set_defaults(defaults: Mapping[str, str]) -> None:
    for name in PLACES:
        if os.environ.get(name) == "":
            del os.environ[name]
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    reach_this_machine_directly()


def use_writable_folders() -> None:
    """Put the files of Prefect and the caches of other libraries into the default store if the home is read-only.

    Raises:
        StageError: If the default store cannot be written to, either.
    """
    home = Path("~/.prefect").expanduser()
    store = Path(".minillm").resolve()
    for variable, place in HOME_FOLDERS.items():
        usual = Path(place).expanduser()
        if variable in os.environ or _takes_files(usual):
            continue
        if not _takes_files(store):
            raise StageError(f"neither {usual} nor {store} can be written to; set {variable} to a folder that can")
        instead = store / "home" / usual.name.removeprefix(".")
        make_folder(instead)
        os.environ[variable] = str(instead)
    if os.environ.get("PREFECT_HOME") == str(store / "home" / "prefect") and (home / "profiles.toml").is_file():
        os.environ.setdefault("PREFECT_PROFILES_PATH", str(home / "profiles.toml"))


def _takes_files(folder: Path) -> bool:
    """Return whether files can be made in a folder, which need not exist yet."""
    try:
        while not folder.exists():
            folder = folder.parent
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
