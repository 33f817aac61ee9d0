"""The setup of docs/production.md: Prefect and MLflow on a real PostgreSQL, files in a real S3-compatible store."""

from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest
from moto.server import ThreadedMotoServer

from tests.postgres import Postgres, postgres_server
from tests.serving import ended, serving, start
from tests.waiting import wait_for

pytestmark = pytest.mark.long

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


def rows(server: Postgres, database: str, table: str) -> int:
    with psycopg2.connect(f"postgresql://postgres@127.0.0.1:{server.port}/{database}") as connection:
        cursor = connection.cursor()
        cursor.execute(f"SELECT count(*) FROM {table}")
        ((count,),) = cursor.fetchall()
        return count


def test_runs_are_kept_in_postgresql_and_files_in_s3_and_a_restart_of_the_database_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    s3.start()
    address = "http://{}:{}".format(*s3.get_host_and_port())
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    files: Any = boto3.client("s3", endpoint_url=address)
    files.create_bucket(Bucket="minillm")
    with postgres_server() as postgres:
        environment = {
            "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres.database('prefect')}",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{postgres.database('mlflow')}",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://minillm/runs",
            "MLFLOW_S3_ENDPOINT_URL": address,
        }
        with serving(tmp_path, environment) as served, served.client() as client:
            run = start(client, served)
            wait_for(lambda: served.working())
            postgres.control("restart")
            assert ended(client, run.id) == "Completed", "".join(served.log[-60:])
            with served.tracked() as tracked:
                (experiment,) = [found for found in tracked.search_experiments() if found.name == "small"]
                runs = tracked.search_runs([experiment.experiment_id])
                assert {found.info.status for found in runs} == {"FINISHED"}
                (parent,) = [found for found in runs if "mlflow.parentRunId" not in found.data.tags]
                page = Path(tracked.download_artifacts(parent.info.run_id, "report.html", str(tmp_path)))
            assert "rouge" in page.read_text(encoding="utf-8").lower()
            assert rows(postgres, "prefect", "flow_run") >= 1
            assert rows(postgres, "mlflow", "runs") == len(runs)
            keys = [found["Key"] for found in files.list_objects_v2(Bucket="minillm")["Contents"]]
            assert any(key.endswith("report.html") for key in keys)
            assert all(key.startswith("runs/") for key in keys)
            assert not list(tmp_path.rglob("*.db"))
            assert "unused" not in "".join(served.log), "passwords are not printed"
    s3.stop()
