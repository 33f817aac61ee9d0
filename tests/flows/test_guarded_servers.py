"""The servers of `make ui` answer only their own pages and this user: real servers, a real browser, a stranger."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from tasks.serving.deploying import POOL, DeployError, make_pool
from tests.conftest import ROOT
from tests.serving import Served, logged_in, serving
from tests.stranger import Stranger, stranger
from tests.waiting import wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

ATTACK = """async ([address, body]) => {
    const common = {method: "POST", credentials: "include"};
    const attempts = await Promise.allSettled([
        fetch(address, {...common, mode: "no-cors", body: new Blob([body])}),
        fetch(address, {...common, mode: "no-cors", headers: {"Content-Type": "text/plain"}, body}),
        fetch(address, {...common, mode: "cors", headers: {"Content-Type": "application/json"}, body}),
    ]);
    return [navigator.sendBeacon(address, body), ...attempts.map(attempt => attempt.status)];
}"""
"""Script that tries every way in which a page can send a request to another origin."""


@dataclass
class Place:
    """Servers of `make ui` while a stranger has Prefect's usual port, and a deployment on them."""

    served: Served
    at_prefects_port: Stranger
    deployment: UUID | None = None

    @property
    def create_run(self) -> str:
        return f"{self.served.prefect}/api/deployments/{self.deployment}/create_flow_run"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("guarded")
    with stranger() as other, serving(folder, {"MINILLM_PREFECT_UI": other.address}, worker=False) as served:
        (line,) = [line for line in served.log if line.startswith("Prefect ")]
        served.prefect = line.split()[1]
        for server, health in ((served.prefect, "/api/health"), (served.mlflow, "/health")):
            wait_for(lambda address=server + health: answers(address))
        found = Place(served, other)
        with served.client() as client:
            make_pool(client)
            flow = client.create_flow_from_name("attacked")
            found.deployment = client.create_deployment(flow, "attacked", work_pool_name=POOL)
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--host-resolver-rules=MAP evil.example 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code in (200, 401)
    except httpx.HTTPError:
        return False


def runs(client: SyncPrefectClient) -> int:
    return len(client.read_flow_runs())


def number_of_experiments(place: Place) -> int:
    with place.served.tracked() as client:
        return len(client.search_experiments())


def test_a_taken_port_is_left_to_whoever_has_it_and_that_is_said(place: Place):
    log = "".join(place.served.log)
    free = place.served.prefect
    assert f"{place.at_prefects_port.address} is taken by something else; Prefect is served at {free} instead" in log
    assert place.at_prefects_port.heard == [], "nothing was told to it"


@pytest.mark.parametrize("page", ["/api/admin/version", "/api/flows/count"])
def test_prefect_wants_the_login(place: Place, page: str):
    method = "POST" if "count" in page else "GET"
    address, login = place.served.prefect + page, place.served.name_and_password
    assert httpx.request(method, address, json={}).status_code == 401
    assert httpx.request(method, address, json={}, auth=("minillm", "guessed")).status_code == 401
    assert httpx.request(method, address, json={}, auth=login).status_code == 200


@pytest.mark.parametrize("page", ["/", "/health", "/version", "/api/2.0/mlflow/experiments/search?max_results=1"])
def test_mlflow_wants_the_login(place: Place, page: str):
    address, login = place.served.mlflow + page, place.served.name_and_password
    assert httpx.get(address).status_code == 401
    assert httpx.get(address, auth=("minillm", "guessed")).status_code == 401
    assert httpx.get(address, auth=login).status_code == 200


@pytest.mark.parametrize("server", ["prefect", "mlflow"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Origin": "http://localhost"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),  # through a tunnel
    ],
)
def test_hosts_and_origins_that_are_answered(place: Place, server: str, headers: dict[str, str], status: int):
    pages = {"prefect": f"{place.served.prefect}/api/admin/version", "mlflow": f"{place.served.mlflow}/version"}
    reply = httpx.get(pages[server], headers=headers, auth=place.served.name_and_password)
    assert reply.status_code == status
    assert "access-control-allow-origin" not in reply.headers or status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:8000"])
def test_a_socket_is_not_opened_for_another_origin(place: Place, origin: str):
    address = place.served.prefect.replace("http", "ws") + "/api/events/in"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin=Origin(origin), subprotocols=[Subprotocol("prefect")])


def test_a_socket_wants_the_login(place: Place):
    address = place.served.prefect.replace("http", "ws") + "/api/events/in"
    with connect(address, subprotocols=[Subprotocol("prefect")]) as socket:
        socket.send(json.dumps({"type": "auth", "token": place.served.login}))
        assert json.loads(socket.recv()) == {"type": "auth_success"}
    with connect(address, subprotocols=[Subprotocol("prefect")]) as socket:
        socket.send(json.dumps({"type": "auth", "token": "minillm:guessed"}))
        with pytest.raises(ConnectionClosed, match="Invalid token"):
            socket.recv()


@needs_browser
def test_a_page_of_another_origin_starts_nothing_though_its_reader_is_logged_in(place: Place, browser: Browser):
    page = logged_in(browser, place.served)
    page.goto(place.served.mlflow)
    expect(page.get_by_text("Experiments").first).to_be_visible()
    experiments = number_of_experiments(place)
    attack = page.context.new_page()
    attack.goto(place.at_prefects_port.address)
    run, experiment = {"state": {"type": "SCHEDULED"}}, {"name": "attacked"}
    attack.evaluate(ATTACK, [place.create_run, json.dumps(run)])
    attack.evaluate(ATTACK, [f"{place.served.mlflow}/api/2.0/mlflow/experiments/create", json.dumps(experiment)])
    with place.served.client() as client:
        assert runs(client) == 0
    assert number_of_experiments(place) == experiments


@needs_browser
def test_a_name_that_was_pointed_here_shows_nothing(place: Place, browser: Browser):
    page = browser.new_page()
    for server in (place.served.prefect, place.served.mlflow):
        reply = page.goto(server.replace("127.0.0.1", "evil.example"))
        assert reply is not None
        assert (reply.status, reply.text()) == (400, "Invalid host header")


@needs_browser
def test_its_own_pages_work_under_this_machines_other_name_too(place: Place, browser: Browser):
    prefect, mlflow = (
        server.replace("127.0.0.1", "localhost") for server in (place.served.prefect, place.served.mlflow)
    )
    page = logged_in(browser, place.served, prefect)
    page.goto(f"{prefect}/deployments")
    expect(page.get_by_text("attacked").first).to_be_visible()
    page.goto(mlflow)
    expect(page.get_by_text("Experiments").first).to_be_visible()


@pytest.mark.parametrize("name", ["command", "env", "env.PATH", "working_dir", "stream_output"])
def test_a_run_does_not_say_what_its_process_executes(place: Place, name: str):
    assert place.deployment is not None
    with place.served.client() as client:
        before = runs(client)
        with pytest.raises(PrefectHTTPStatusError, match="422"):
            client.create_flow_run_from_deployment(place.deployment, job_variables={name: "touch pwned"})
        assert runs(client) == before


def test_a_pool_of_an_earlier_version_is_mended(place: Place):
    with place.served.client() as client:
        open_template = {
            "job_configuration": {"command": "{{ command }}"},
            "variables": {"properties": {"command": {}}},
        }
        client.request(
            "PATCH", "/work_pools/{name}", path_params={"name": POOL}, json={"base_job_template": open_template}
        )
        make_pool(client)
        assert "command" not in json.dumps(client.read_work_pool(POOL).base_job_template)


def test_a_pool_of_another_type_is_left_as_it_is(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.serving.deploying.POOL", "clusters")
    with place.served.client() as client:
        made = client.create_work_pool(WorkPoolCreate(name="clusters", type="kubernetes"))
        with pytest.raises(DeployError, match="'clusters' of the type 'kubernetes' already"):
            make_pool(client)
        assert client.read_work_pool("clusters").base_job_template == made.base_job_template


def test_the_login_is_in_a_file_of_this_user_alone_and_nowhere_else(place: Place):
    _, password = place.served.name_and_password
    holding, records = place.served.holding(password), place.served.folder / "prefect" / "minillm"
    assert {path.parent for path in holding} == {records}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (records, *holding)} == {0o700, 0o600}
    assert password not in "".join(place.served.log)
    for process in psutil.process_iter(["cmdline"]):
        assert password not in " ".join(process.info["cmdline"] or [])
    if os.geteuid() == 0:
        for path in holding:
            other = subprocess.run(["cat", path], user="nobody", capture_output=True, check=False)
            assert other.returncode != 0


CLIENT = """
import os
from tasks.environment.settings import load_prefect, set_mlflow_defaults
load_prefect()
set_mlflow_defaults()
from prefect.client.orchestration import get_client
from mlflow import MlflowClient
with get_client(sync_client=True) as client:
    print(client.api_url, len(client.read_deployments()))
print(len(MlflowClient().search_experiments()) > 0)
"""


def test_commands_of_this_user_find_the_servers_and_the_login_by_themselves(place: Place):
    home = {"PREFECT_HOME": str(place.served.folder / "prefect")}
    wanted = {"MINILLM_PREFECT_UI": place.at_prefects_port.address, "MLFLOW_TRACKING_URI": place.served.mlflow}
    # No proxy hears of requests to this machine either.
    heard = len(place.at_prefects_port.heard)
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), place.at_prefects_port.address)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT],
        cwd=ROOT,
        env=os.environ | home | wanted | proxies,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == [f"{place.served.prefect}/api/ 1", "True"], done.stderr
    assert len(place.at_prefects_port.heard) == heard


def test_prefects_own_command_is_logged_in(place: Place):
    home = {"PREFECT_HOME": str(place.served.folder / "prefect"), "MINILLM_PREFECT_UI": place.at_prefects_port.address}
    command = [sys.executable, "-m", "tasks.serving", "deployment", "ls"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | home, capture_output=True, text=True, check=False)
    assert "attacked/attacked" in done.stdout, done.stderr
