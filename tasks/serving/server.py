"""A Prefect server for the time of one command, where none is configured or running.

Prefect would start one itself, but within the terminal's reach: Ctrl-C ends it before the flow, which then waits long
for it. This one has a session of its own, starts while the rest is imported, and ends after Prefect's last word to it.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from typing import Any

import httpx
from prefect import Flow, State
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.states import Crashed

from minillm.redaction import redacted
from tasks.environment.credentials import START_SECONDS, Server, listens, make_login, proves
from tasks.environment.settings import PREFECT_UI, refusing, require_address
from tasks.running.console import shown
from tasks.running.process_group import Group, piped, watched
from tasks.running.supervision import free_port
from tasks.serving.apps import server_command, server_environment

GRACE_SECONDS = 10.0


class ServerError(Exception):
    """The server did not start; the message has its last lines."""


def run_flow(flow: Flow[..., State], *parameters: Any) -> State:
    """Run a flow on the server that is configured or running, or on one for the time of this process.

    Args:
        flow: Its state is what it returns.
        parameters: Of the flow.

    Returns:
        How it ended; crashed, where the server was lost for good, so that nobody could be told.
    """
    with shown(flow.name):
        with refusing(ServerError):
            ensure_prefect_server()
        server = PREFECT_API_URL.value()
        try:
            return flow(*parameters, return_state=True)
        except httpx.HTTPError as error:
            lost = redacted(f"Prefect's server at {server} was lost ({error})")
            print(
                f"{lost}: its pages end here, but stages that have finished are in the store, and the same command "
                "goes on from there",
                file=sys.stderr,
            )
            return Crashed(message=lost)


def ensure_prefect_server() -> None:
    """Use the server that is configured or running, or else one that ends with this process.

    Raises:
        ServerError: If it does not answer in time.
        ConfigError: MINILLM_PREFECT_UI or an origin is malformed.
        StageError: The login in PREFECT_SERVER_API_AUTH_STRING is malformed.
    """
    if PREFECT_API_URL.value():
        return
    require_address("prefect", PREFECT_UI)
    if listens(PREFECT_UI):
        print(
            f"{PREFECT_UI} is not served by a `make ui` of yours: this run has a Prefect server of its own "
            "(PREFECT_API_URL would name another)",
            file=sys.stderr,
        )
    server = Server("prefect", PREFECT_UI, f"http://127.0.0.1:{free_port()}", "", make_login())
    environment = os.environ | server_environment(server) | {"PREFECT_UI_ENABLED": "false"}
    until_exit = contextlib.ExitStack()
    # Prefect sends its last log lines when threads are joined, which comes before what is registered here.
    atexit.register(until_exit.close)
    group = until_exit.enter_context(Group(piped(watched(server_command(server)), environment), GRACE_SECONDS))
    _wait_for(server, group)
    drain = threading.Thread(target=_drain, args=(group,), daemon=True)
    drain.start()
    until_exit.callback(drain.join)
    until_exit.callback(group.terminate)
    # It serves no pages; those of `make ui` show its runs later.
    pages = {} if PREFECT_UI_URL.value() else {PREFECT_UI_URL: PREFECT_UI}
    access = {PREFECT_API_URL: f"{server.address}/api", PREFECT_API_AUTH_STRING: server.login}
    until_exit.enter_context(temporary_settings({**access, **pages}))


def _wait_for(server: Server, group: Group) -> None:
    lines: list[str] = []
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        line = group.next_line(0.05)
        if line is None:
            break
        lines += [line] if line else []
        if proves(server):
            return
    raise ServerError("\n".join(["Prefect's server did not start; its last lines:", *lines[-30:]]))


def _drain(group: Group) -> None:
    """Read what the server writes until it has ended."""
    while group.next_line(0.2) is not None:
        pass
