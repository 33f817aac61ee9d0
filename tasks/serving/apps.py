"""The apps that we serve, behind their guard, with the command and environment of a process that serves one."""

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from minillm.errors import ConfigError
from tasks.environment.credentials import Server
from tasks.environment.settings import parts_of
from tasks.serving.guard import guarded, host_names

ROOT = Path(__file__).parents[2]
ADDRESS, KEY, LOGIN = "MINILLM_SERVER_ADDRESS", "MINILLM_SERVER_KEY", "MINILLM_SERVER_LOGIN"
ORIGINS = {"prefect": "PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "mlflow": "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"}
"""The servers' own variables for further origins of their pages (such as a proxy in front), comma-separated."""

DEFAULT_PORTS = {"http": 80, "https": 443}
"""Default ports, which browsers leave out of origins."""


def server_command(server: Server) -> list[str]:
    """Return the command that serves one app until it is ended; it needs `server_environment`."""
    place = urlsplit(server.address)
    listening = ["--host", str(place.hostname), "--port", str(place.port), "--workers", "1"]
    app = ["--factory", f"tasks.serving.apps:{server.kind}_app", "--app-dir", str(ROOT)]
    return [sys.executable, "-m", "uvicorn", *app, *listening, "--log-level", "warning"]


def server_environment(server: Server) -> dict[str, str]:
    """Return the environment variables of a process that serves an app.

    Raises:
        ConfigError: If an origin is malformed, or a wildcard.
    """
    shared = {ADDRESS: server.address, KEY: server.key}
    origins = ",".join([server.address, *further_origins(server.kind)])
    if server.kind == "mlflow":
        names = host_names(server.address, further_origins("mlflow"))
        hosts = ",".join(pattern for name in names for pattern in (name, f"{name}:*"))
        return shared | {LOGIN: server.login, "MLFLOW_SERVER_ALLOWED_HOSTS": hosts, ORIGINS["mlflow"]: origins}
    # The page must ask the server that it came from; by default it asks Prefect's default port.
    places = {"PREFECT_SERVER_UI_API_URL": "/api", ORIGINS["prefect"]: origins}
    return shared | places | {"PREFECT_SERVER_API_AUTH_STRING": server.login}


def further_origins(kind: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the origins that the user has named for a server, as browsers write them.

    Raises:
        ConfigError: If an origin is malformed, or a wildcard.
    """
    origins = [origin.strip() for origin in environment.get(ORIGINS[kind], "").split(",") if origin.strip()]
    return [_origin(ORIGINS[kind], origin) for origin in origins]


def _origin(variable: str, given: str) -> str:
    place = parts_of(given.lower())
    if place is None or place.scheme not in DEFAULT_PORTS or "*" in place.netloc:
        raise ConfigError(
            f"{variable}: {given!r} is not an origin; name those of your own pages by scheme, host and, unless it is "
            "the scheme's default, port, such as https://runs.example.org"
        )
    name = place.netloc.removesuffix(":").removesuffix(f":{place.port}")
    shown = "" if place.port in (None, DEFAULT_PORTS[place.scheme]) else f":{place.port}"
    return f"{place.scheme}://{name}{shown}"


def prefect_app() -> ASGIApp:
    """Make the app of Prefect's server and pages; Prefect itself asks for the login."""
    from prefect.server.api.server import create_app

    return guarded(create_app(final=True), os.environ[ADDRESS], os.environ[KEY], further_origins("prefect"))


def mlflow_app() -> ASGIApp:
    """Make the app of MLflow's server and pages, on the database and files that MLflow's own variables name."""
    from mlflow.server import constants, handlers

    database, root = os.environ["MLFLOW_BACKEND_STORE_URI"], os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: root,
        constants.ARTIFACTS_DESTINATION_ENV_VAR: os.environ["MLFLOW_ARTIFACTS_DESTINATION"],
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    handlers.initialize_backend_stores(database, database, root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow uses what Starlette has deprecated
        from mlflow.server.fastapi_app import app

    return guarded(app, os.environ[ADDRESS], os.environ[KEY], further_origins("mlflow"), os.environ[LOGIN])
