"""`make serve` with its real servers, worker and schedules, and the pages in a real browser."""

import contextlib
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest
from playwright.sync_api import expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.states import Cancelling

from tests.serving import Served, ended, logged_in, retry, serve, serving, start, state
from tests.waiting import wait_for

pytestmark = pytest.mark.long

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serving")) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[SyncPrefectClient]:
    with served.client() as client:
        yield client


def alive(run: FlowRun) -> bool:
    """Return whether the process of a flow run, or one that it started, is alive."""
    processes = psutil.process_iter(["environ"])
    return any((found.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == str(run.id) for found in processes)


def test_a_schedule_fires_and_the_run_is_in_both_pages(served: Served, client: SyncPrefectClient):
    nightly = client.read_deployment_by_name("distill/nightly")
    (cron,) = [schedule.schedule for schedule in nightly.schedules]
    assert isinstance(cron, CronSchedule)
    assert (cron.cron, cron.timezone) == ("0 2 * * *", "Europe/Paris")
    often = {"schedule": {"interval": 30}, "active": True, "parameters": {"config_file": str(served.config)}}
    place = {"path_params": {"id": nightly.id}}
    (made,) = client.request("POST", "/deployments/{id}/schedules", **place, json=[often]).json()

    def fired() -> list[FlowRun]:
        return [run for run in client.read_flow_runs() if run.deployment_id == nightly.id and run.start_time]

    wait_for(fired)
    (run,) = fired()
    client.delete_deployment_schedule(nightly.id, UUID(made["id"]))  # together with the runs that it had scheduled
    assert ended(client, run.id) == "Completed", "".join(served.log[-60:])
    assert (run.auto_scheduled, run.work_queue_name) == (True, "accelerator")
    assert set(client.read_flow_run(run.id).tags) >= {"distillation", "scheduled"}
    with served.tracked() as tracked:
        (experiment,) = [found for found in tracked.search_experiments() if found.name == "small"]
        runs = tracked.search_runs([experiment.experiment_id])
    (parent,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
    assert (parent.info.run_name, parent.info.status) == (f"small {run.name}", "FINISHED")
    _, password = served.name_and_password
    assert {path.parent.name for path in served.holding(password)} == {"minillm"}, "no log, page or artifact has it"
    assert password not in "".join(served.log)
    if CHROMIUM is None:
        pytest.skip("the run is there; its pages need a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = logged_in(browser, served, viewport={"width": 1400, "height": 1000})
        expect.set_options(timeout=30_000)
        page.goto(f"{served.prefect}/runs/flow-run/{run.id}")
        expect(page.get_by_text(run.name).first).to_be_visible()
        expect(page.get_by_text("Completed").first).to_be_visible()
        page.goto(f"{served.prefect}/deployments/deployment/{nightly.id}?tab=Parameters")
        expect(page.get_by_text("config_file").first).to_be_visible()
        page.goto(f"{served.mlflow}/#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}")
        expect(page.get_by_text("rouge_l/sft/mean").first).to_be_visible()


def test_runs_wait_for_each_other_and_one_that_is_cancelled_ends_within_ten_seconds(
    served: Served, client: SyncPrefectClient
):
    first = start(client, served, "seed=2")
    second = start(client, served, "seed=2")
    wait_for(lambda: served.working())
    assert sorted(state(client, run.id) == "Running" for run in (first, second)) == [False, True]
    running, waiting = (first, second) if state(client, first.id) == "Running" else (second, first)
    assert alive(running)
    client.set_flow_run_state(running.id, Cancelling())
    assert wait_for(lambda: not alive(running)) < 10
    wait_for(lambda: state(client, running.id) == "Cancelled", 20)
    assert ended(client, waiting.id) == "Completed", "it goes on where the other was cancelled"


def test_what_is_stopped_leaves_nothing_behind_and_goes_on_when_served_again(served: Served, client: SyncPrefectClient):
    run = start(client, served, "seed=3")
    wait_for(lambda: alive(run) and served.working())
    served.process.send_signal(signal.SIGINT)
    assert served.process.wait(60) == 0
    wait_for(lambda: served.family() == [], 5)
    assert re.search(r"Ctrl-C stops them", "".join(served.log))

    with serving(served.folder) as again, again.client() as there:
        assert state(there, run.id) == "Crashed"
        retry(again, run.id)
        wait_for(lambda: state(there, run.id) in ("Completed", "Failed"))
        assert state(there, run.id) == "Completed", "".join(again.log[-60:])


def test_clients_go_on_where_servers_that_were_killed_are_served_again(tmp_path: Path):
    def answers(client: SyncPrefectClient) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return client.api_healthcheck() is None and client.hello().status_code == 200
        return False

    first = serve(tmp_path, worker=False)
    places = {"MINILLM_PREFECT_UI": first.prefect, "MINILLM_MLFLOW_UI": first.mlflow}
    login = first.login
    with first.client() as client:
        wait_for(lambda: answers(client))
        flow = client.create_flow_from_name("begun before")
        for process in first.processes():
            process.kill()  # as if the machine lost power
        first.process.wait()
        with serving(tmp_path, places, worker=False) as second:
            assert second.login == login
            wait_for(lambda: answers(client))
            assert client.read_flow(flow).name == "begun before"
            (server,) = [process for process in second.processes() if "prefect_app" in " ".join(process.cmdline())]
            server.kill()  # as if memory had run out
            second.process.wait(60)
        with serving(tmp_path, places, worker=False) as third:
            assert third.login == login
            wait_for(lambda: answers(client))
        assert third.process.returncode == 0, "".join(third.log)
    with serving(tmp_path, places, worker=False) as fourth:
        assert fourth.login != login, "the third was asked to end"
