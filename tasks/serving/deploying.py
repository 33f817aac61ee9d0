"""Additions of `make serve` to the pages: a work pool, the deployments of prefect.yaml, and a worker that runs them."""

import datetime
import re
import subprocess
import sys
from pathlib import Path

from prefect.automations import Automation, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectNotFound

from minillm.files import read_json
from minillm.redaction import redacted

POOL = "local"
POOL_TEMPLATE = Path(__file__).parent / "work-pool.json"
"""Job template that lets a run choose nothing of its process: above all no command, environment or folder."""
ACCELERATOR = "accelerator"
"""Queue of runs that train or generate; one runs at a time."""
SILENT = datetime.timedelta(seconds=90)
"""Three heartbeats (see `PREFECT_FLOWS_HEARTBEAT_FREQUENCY` in tasks.environment.settings)."""
ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Scheduled", "AwaitingRetry", "Paused", "Suspended")


class DeployError(Exception):
    """Error of a failed deployment of prefect.yaml; the message has Prefect's words."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


def deploy() -> list[str]:
    """Make the pool and its queue if they do not exist yet, and deploy everything in prefect.yaml.

    Returns:
        Names of all deployments, as FLOW/DEPLOYMENT.

    Raises:
        DeployError: If prefect.yaml could not be deployed, or the pool is not one for processes.
    """
    with get_client(sync_client=True) as client:
        make_pool(client)
        watch = _dead_runs()
        if not client.read_automations_by_name(watch.name):
            watch.create()
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise DeployError(f"prefect deploy --all failed:\n{done.stdout}{done.stderr}")
    return re.findall(r"Deployment '(\S+)' successfully", done.stdout)


def make_pool(client: SyncPrefectClient) -> None:
    """Make the pool and its queue if they do not exist yet; runs cannot change what a process of it executes.

    Raises:
        DeployError: If a pool of this name exists that is not for processes.
    """
    template = read_json(POOL_TEMPLATE)
    try:
        kind = client.read_work_pool(POOL).type
        if kind != "process":
            raise DeployError(
                f"Prefect has a work pool {POOL!r} of the type {kind!r} already, and runs here need one of the type "
                "'process': rename or delete it, or give `make serve` another Prefect database"
            )
        client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    try:
        client.read_work_queue_by_name(ACCELERATOR, work_pool_name=POOL)
    except ObjectNotFound:
        client.create_work_queue(ACCELERATOR, concurrency_limit=1, work_pool_name=POOL)


def _dead_runs() -> Automation:
    """Return the automation that marks a run as crashed when its process falls silent, so that it can be retried."""
    return Automation(
        name="Runs that fell silent have crashed",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ENDS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},  # type: ignore[arg-type]
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENT,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                state=StateType.CRASHED,
                message="no heartbeat: its process has died; a retry continues its work",
                force=False,
            )
        ],
    )
