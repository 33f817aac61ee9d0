"""Our servers are recognised by a proof only they can give, recorded privately, and reached without a proxy."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from minillm.errors import ConfigError, StageError
from tasks.environment.credentials import (
    PROOF_PATH,
    Server,
    died,
    make_login,
    proof,
    proves,
    record,
    recorded,
    records_folder,
    running,
    running_at,
)
from tasks.environment.settings import (
    mlflow_pages,
    reach_this_machine_directly,
    require_address,
    set_mlflow_defaults,
    set_prefect_defaults,
    use_writable_folders,
)
from tasks.running.supervision import free_port
from tasks.serving.apps import further_origins, server_environment
from tasks.serving.ui import servers_to_start
from tests.conftest import ROOT
from tests.stranger import Stranger, stranger
from tests.waiting import wait_for

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "NO_PROXY", "no_proxy")

SERVE = """
import sys, uvicorn
from tasks.serving.guard import guarded

async def app(scope, receive, send):
    pass

port, key = int(sys.argv[1]), sys.stdin.readline().strip()
shown = guarded(app, f"http://127.0.0.1:{port}", key, ["https://runs.example.org"])
uvicorn.run(shown, port=port, log_level="error", lifespan="off")
"""
"""Program that serves the guard around a trivial app."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    for name in PROXIES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def elsewhere() -> Iterator[Stranger]:
    with stranger() as found:
        yield found


@pytest.fixture(scope="module")
def ours() -> Iterator[Server]:
    """Run a server that belongs to this user."""
    server = Server("prefect", "http://127.0.0.1:4200", f"http://127.0.0.1:{free_port()}", "/store", "minillm:secret")
    command = [sys.executable, "-c", SERVE, server.address.rpartition(":")[2]]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(server.key + "\n")
    process.stdin.flush()
    wait_for(lambda: proves(server))
    yield server
    process.kill()
    process.wait()
    process.stdin.close()


def at(server: Server, address: str) -> Server:
    return replace(server, address=address)


RUN = "from tasks.serving.server import run_flow; from prefect import flow; run_flow(flow(lambda: None, name='test'))"


def refusal(arguments: list[str], variables: dict[str, str]) -> str:
    """Run a command that must refuse with status 2 and print nothing; return its standard error."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_a_proof_depends_on_key_address_and_challenge():
    proofs = {proof(*words) for words in (("k", "a", "c"), ("l", "a", "c"), ("k", "b", "c"), ("k", "a", "d"))}
    assert len(proofs) == 4


def test_our_server_is_found_while_it_is_recorded_and_only_then(ours: Server):
    assert running(kind="prefect", wanted=ours.wanted) is None
    with recorded(ours):
        assert running(kind="prefect", wanted=ours.wanted) == ours == running_at("prefect", ours.address)
        assert running_at("prefect", ours.address.replace("127.0.0.1", "localhost")) == ours
        assert running(kind="mlflow", wanted=ours.wanted) is None
        assert running(kind="prefect", wanted="http://127.0.0.1:4300") is None
    assert running(kind="prefect", wanted=ours.wanted) is None


def test_a_server_of_another_store_is_none_of_this_one(ours: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.environment.settings.MLFLOW_UI", ours.wanted)
    with recorded(replace(ours, kind="mlflow")):
        assert running(kind="mlflow", wanted=ours.wanted, store="/store") == replace(ours, kind="mlflow")
        assert running(kind="mlflow", wanted=ours.wanted, store="/other") is None
        assert mlflow_pages(Path("/store")) == ours.address
        assert mlflow_pages(Path("/other")) == ours.wanted


def test_the_login_and_the_address_of_a_server_that_died_are_those_of_the_next(
    ours: Server, elsewhere: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    assert died(kind="prefect", wanted=ours.wanted) is None
    records_folder().mkdir(mode=0o700, parents=True)
    dead = at(ours, f"http://127.0.0.1:{free_port()}")
    record(dead)
    assert died(kind="prefect", wanted=ours.wanted) == dead
    assert make_login(dead) == dead.login
    assert died(kind="prefect", wanted="http://127.0.0.1:4300") is None
    assert died(kind="prefect", wanted=ours.wanted, store="/other") is None
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "ada:password")
    assert make_login(dead) == "ada:password"
    record(at(ours, ours.address))  # this one is alive
    assert died(kind="prefect", wanted=ours.wanted) == dead
    (tmp_path / "prefect" / "minillm" / f"prefect-{dead.address.rpartition(':')[2]}.json").unlink()
    record(at(ours, elsewhere.address))
    assert died(kind="prefect", wanted=ours.wanted) is None, "what listens at its address may have been told the login"


@pytest.mark.parametrize("taken", [False, True])
def test_what_is_served_again_has_the_login_and_the_address_of_what_died(
    taken: bool, ours: Server, elsewhere: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    wanted = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr("tasks.serving.ui.PREFECT_UI", wanted)
    records_folder().mkdir(mode=0o700, parents=True)
    dead = replace(ours, wanted=wanted, address=elsewhere.address if taken else f"http://127.0.0.1:{free_port()}")
    record(dead)
    (server,) = servers_to_start(tmp_path)
    assert (server.login == dead.login) == (not taken)
    assert server.address == (wanted if taken else dead.address)
    assert server.key != dead.key
    assert dead.login.split(":")[1] not in "".join(elsewhere.heard)


def test_a_record_that_goes_while_another_server_starts_stops_nothing(ours: Server, monkeypatch: pytest.MonkeyPatch):
    with recorded(at(ours, f"http://127.0.0.1:{free_port()}")) as path:
        os.utime(path, (0, 0))

        def end(_: str) -> bool:
            path.unlink()  # as its own process does when it ends
            return False

        monkeypatch.setattr("tasks.environment.credentials.listens", end)
        with recorded(ours) as other:
            assert other.exists()


def test_what_speaks_no_http_is_not_ours():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].sendall(b"SSH-2.0-OpenSSH_9.2\r\n"))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not proves(Server("prefect", "http://127.0.0.1:4200", address, "/store", "minillm:secret"))
        thread.join()


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI", "PREFECT_HOME"])
def test_an_empty_variable_is_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for set_defaults in (set_prefect_defaults, set_mlflow_defaults):
        monkeypatch.setenv(name, "")
        set_defaults()
        assert name not in os.environ


def test_what_says_yes_to_everything_is_not_ours_and_does_not_hear_the_login(elsewhere: Stranger):
    server = Server("prefect", "http://127.0.0.1:4200", elsewhere.address, "/store", make_login())
    with recorded(server):  # as left by a killed server whose port another user then took
        assert running(kind="prefect", wanted=server.wanted) is None
    assert len(elsewhere.heard) == 1
    assert server.login.split(":")[1] not in elsewhere.heard[0]
    assert server.key not in elsewhere.heard[0]
    assert "Authorization" not in elsewhere.heard[0]


def test_what_passes_on_our_servers_answers_is_not_ours(ours: Server, elsewhere: Stranger):
    elsewhere.asks = ours.address
    server = at(ours, elsewhere.address)
    with recorded(server):
        assert not proves(server)
    assert len(elsewhere.heard) == 1


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("runs.example.org", "https://runs.example.org", 200),
        (None, "https://runs.example.org", 200),  # a proxy that does not pass on the host's name
        ("runs.example.org", "https://other.example.org", 403),
        ("other.example.org", "https://runs.example.org", 400),
        (None, "http://[::1", 403),  # malformed
        ("www.runs.example.org", None, 400),
    ],
)
def test_a_proxy_in_front_is_answered_under_the_origin_that_was_named(
    ours: Server, host: str | None, origin: str | None, status: int
):
    headers = {name: value for name, value in (("Host", host), ("Origin", origin)) if value is not None}
    assert httpx.get(ours.address + PROOF_PATH, headers=headers).status_code == status


def test_a_new_login_is_long_and_never_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    logins = {make_login() for _ in range(100)}
    assert len(logins) == 100
    assert all(len(login) == len("minillm:") + 32 for login in logins)


def test_a_lasting_login_is_the_users_and_has_a_name_and_a_password(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "ada:pass:word")
    assert make_login() == "ada:pass:word"
    client = Server("mlflow", "w", "a", "s", make_login()).client_environment
    assert client == {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "pass:word"}
    for wrong in ("password", "ada:", ":password", "ada:pässword"):
        monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", wrong)
        with pytest.raises(StageError, match="NAME:PASSWORD"):
            make_login()


def test_records_are_private_whatever_the_umask(ours: Server):
    before = os.umask(0)
    try:
        with recorded(ours) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
            path.parent.chmod(0o755)  # as if another program had made it
        with recorded(ours) as path:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_records_that_others_may_have_written_are_refused(ours: Server):
    with recorded(ours) as path:
        path.parent.chmod(0o777)
        with pytest.raises(StageError, match="set PREFECT_HOME to a folder of your own"):
            running(kind="prefect", wanted=ours.wanted)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_records_in_a_folder_of_another_user_are_refused(ours: Server):
    records_folder().mkdir(parents=True)
    os.chown(records_folder(), 65534, 65534)
    with pytest.raises(StageError, match="remove it"), recorded(ours):
        pass


def test_a_damaged_record_hides_no_other(ours: Server):
    with recorded(ours) as path:
        path.with_name("prefect-1.json").write_text('{"kind": "pre', encoding="utf-8")
        path.with_name("prefect-2.json").write_text(json.dumps({"kind": "prefect"}), encoding="utf-8")
        assert running(kind="prefect", wanted=ours.wanted) == ours


def test_origins_are_named_not_opened(monkeypatch: pytest.MonkeyPatch):
    server = Server("prefect", "http://127.0.0.1:4200", "http://127.0.0.1:4201", "/store", "minillm:secret")
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "https://runs.example.org, https://other.example.org")
    allowed = server_environment(server)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"]
    assert allowed == "http://127.0.0.1:4201,https://runs.example.org,https://other.example.org"
    monkeypatch.setenv(
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "HTTPS://Runs.example.org:443/,http://h:8080,http://[::1]:80"
    )
    assert further_origins("prefect") == ["https://runs.example.org", "http://h:8080", "http://[::1]"], "as browsers do"
    wrong_ones = ("*", "https://*.example.org", "runs.example.org", "https://h/runs", "https://h?a=1", "https://h#a")
    for wrong in (*wrong_ones, "https://ann@h", "https://h:port", "http://[::1", "ftp://h"):
        monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", wrong)
        with pytest.raises(ConfigError, match="PREFECT_SERVER_CORS_ALLOWED_ORIGINS"):
            further_origins("prefect")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("exempt", [{}, {"NO_PROXY": "inside.example.org"}, {"no_proxy": "inside.example.org"}])
def test_no_proxy_hears_of_this_machine(
    ours: Server, elsewhere: Stranger, monkeypatch: pytest.MonkeyPatch, variable: str, exempt: dict[str, str]
):
    import requests

    for name, value in {variable: elsewhere.address, **exempt}.items():
        monkeypatch.setenv(name, value)
    reach_this_machine_directly()
    page = f"{ours.address}/minillm/proof"
    local = page.replace("127.0.0.1", "localhost")
    for get in (httpx.get, requests.get):
        assert get(page).status_code == get(local).status_code == 200
    assert elsewhere.heard == []
    assert httpx.get("http://outside.example.org/").text == "true", "all else goes as the user wants"
    assert [heard.split("\n")[0] for heard in elsewhere.heard] == ["GET http://outside.example.org/ HTTP/1.1"]
    assert ("inside.example.org" in os.environ["NO_PROXY"]) == bool(exempt)


def test_a_home_that_takes_no_files_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("PREFECT_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME", "PREFECT_PROFILES_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/dev/null")
    use_writable_folders()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".minillm" / "home" / "prefect")
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / ".minillm" / "home" / "cache")
    made = [path for path in (tmp_path / ".minillm").rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / ".minillm", *made)} == {0o700}
    monkeypatch.setenv("XDG_CACHE_HOME", "/where/the/user/says")
    use_writable_folders()
    assert os.environ["XDG_CACHE_HOME"] == "/where/the/user/says"


def test_where_the_store_takes_none_either_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_HOME")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/dev/null")
    (tmp_path / ".minillm").write_text("a file", encoding="utf-8")
    with pytest.raises(StageError, match=r"neither /dev/null/\.prefect nor .*\.minillm can be written to; set PREFECT"):
        use_writable_folders()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MINILLM_PREFECT_UI", "127.0.0.1:4200"),
        ("MINILLM_PREFECT_UI", "http://127.0.0.1:port"),
        ("MINILLM_PREFECT_UI", "http://127.0.0.1:4200/runs"),
        ("MINILLM_MLFLOW_UI", "http://192.0.2.1:5000"),  # not an address of this machine
        ("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", "*"),
        ("PREFECT_SERVER_API_AUTH_STRING", "password"),
    ],
)
def test_what_cannot_be_served_is_named_before_anything_starts(tmp_path: Path, variable: str, value: str):
    words = refusal(["-m", "cli", "ui", "--store", str(tmp_path / "store")], {variable: value})
    assert words.startswith(f"{variable}: ")
    assert len(words.splitlines()) == 1


def test_an_address_of_ipv6_is_refused_as_such():
    with pytest.raises(ConfigError, match=r"MINILLM_MLFLOW_UI: .* IPv6 address such as http://\[::1\]:5000; give"):
        require_address("mlflow", "http://[::1]:5000")


def test_a_server_of_a_run_that_does_not_start_ends_it_with_its_words():
    words = refusal(
        ["-c", RUN],
        {"PREFECT_API_URL": "", "UVICORN_BACKLOG": "nonsense"},
    )
    assert words.startswith("Prefect's server did not start; its last lines:\n"), words
    assert "'nonsense' is not a valid integer" in words


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MINILLM_PREFECT_UI", "http://127.0.0.1:abc"), ("PREFECT_SERVER_API_AUTH_STRING", "password")],
)
def test_a_run_names_what_is_wrong_with_its_own_server(variable: str, value: str):
    words = refusal(["-c", RUN], {"PREFECT_API_URL": "", variable: value})
    assert words.startswith(f"{variable}: ")
    assert len(words.splitlines()) == 1


@pytest.mark.parametrize(
    "command", [["-m", "tasks.serving", "version"], ["-c", "from tasks.tracking.connection import preload; preload()"]]
)
def test_records_that_others_may_have_written_end_commands_with_a_message(command: list[str]):
    records_folder().mkdir(mode=0o777, parents=True)
    records_folder().chmod(0o777)
    places = {"PREFECT_API_URL": "http://127.0.0.1:1/api", "MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | places, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "set PREFECT_HOME to a folder of your own" in done.stderr
    assert len(done.stderr.splitlines()) == 1


OWN_SERVER = """
import flows, os, httpx
from tasks.serving.server import ensure_prefect_server
ensure_prefect_server()
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
with get_client(sync_client=True) as client:
    print(client.request("GET", "/admin/version").json())
print(httpx.get(PREFECT_API_URL.value() + "/admin/version").status_code)
print(httpx.get(PREFECT_API_URL.value() + "/health", headers={"Host": "evil.example"}).status_code)
print(httpx.get(PREFECT_API_URL.value() + "/health", headers={"Origin": "http://evil.example"}).status_code)
print(os.environ["PREFECT_HOME"])
"""


def test_a_run_beside_a_strangers_server_has_its_own_which_only_it_may_use(elsewhere: Stranger, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_HOME"}
    places = {"HOME": "/dev/null", "PYTHONPATH": str(ROOT), "MINILLM_PREFECT_UI": elsewhere.address}
    proxies = {"HTTP_PROXY": elsewhere.address, "ALL_PROXY": elsewhere.address}
    done = subprocess.run(
        [sys.executable, "-c", OWN_SERVER],
        cwd=tmp_path,
        env=environment | places | proxies,
        capture_output=True,
        text=True,
        check=False,
    )
    said = f"{elsewhere.address} is not served by a `make ui` of yours: this run has a Prefect server of its own"
    assert said in done.stderr, done.stderr
    home = str(tmp_path / ".minillm" / "home" / "prefect")
    assert done.stdout.split() == ["3.8.8", "401", "400", "403", home], done.stderr
    assert elsewhere.heard == []
