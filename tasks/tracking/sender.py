"""Connection to MLflow that brings it up to date with the outbox, by run ids, so that any thread can use it."""

import contextlib
import os
from pathlib import Path

from mlflow.entities import Experiment, LifecycleStage
from mlflow.exceptions import MlflowException

from tasks.tracking.client import connect, is_final, logged_in, milliseconds, run_page
from tasks.tracking.database import FILES
from tasks.tracking.delivery import Delivery
from tasks.tracking.entries import DesiredRun, OutboxEntry, server_in_use
from tasks.tracking.outbox import DeletedError, Outbox, RefusedError, UnsentError
from tasks.tracking.tags import ENTRY_TAG, PARENT_TAG


class Sender:
    """Connection to a tracking server, or to the database in the store.

    Raises:
        RefusedError: MLflow cannot use such a server.
        LoginError: The server wants a login.
        MlflowException: The server does not answer.
    """

    def __init__(self, store: Path) -> None:
        self._artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (store / FILES).as_uri()
        self.store = store
        try:
            with logged_in():
                self.client = connect(store)
        except MlflowException as error:
            if is_final(error):
                raise RefusedError(f"{server_in_use()} cannot hold tracked runs: {error.message}") from error
            raise
        self._experiments: dict[str, str] = {}

    @logged_in()
    def send(self, outbox: Outbox, entry: OutboxEntry, desired: DesiredRun) -> None:
        """Send what the server does not know yet of an entry.

        Raises:
            RefusedError: The server will never take the entry.
            DeletedError: A person has deleted its run.
            UnsentError: This entry could not be sent, though the server answers.
            LoginError: The server wants a login.
            MlflowException: The server does not answer.
        """
        try:
            run_id = entry.delivered.run_id or self._find_or_create(outbox, entry, desired)
            Delivery(self, outbox, entry, desired, run_id).send()
        except RefusedError:
            raise
        except Exception as error:  # from the server, a file to be sent, or a text that cannot be sent
            if is_final(error):
                self.require_run(entry.delivered.run_id)
                raise RefusedError(str(error)) from error
            if self._answers():
                raise UnsentError(str(error) or type(error).__name__) from error
            raise

    def _answers(self) -> bool:
        """Return whether the server answers at all."""
        with contextlib.suppress(MlflowException):
            self.client.search_experiments(max_results=1)
            return True
        return False

    def require_run(self, run_id: str | None) -> None:
        """Check that a run still exists, after the server has refused something of it.

        Raises:
            DeletedError: A person has deleted the run.
            RefusedError: Its whole experiment was deleted, or the server does not know the run.
        """
        if run_id is None:
            return
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if is_final(error):
                raise RefusedError(f"it knows no run {run_id}; it is a different server, or the run is gone") from error
            raise
        if run.info.lifecycle_stage == LifecycleStage.DELETED:
            self._require_experiment(self.client.get_experiment(run.info.experiment_id))
            raise DeletedError("it was deleted there")

    def _require_experiment(self, found: Experiment) -> None:
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise RefusedError(
                f"the experiment {found.name!r} was deleted there; restore it in MLflow (`mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`) or give the configuration another `name`"
            )

    def _find_or_create(self, outbox: Outbox, entry: OutboxEntry, desired: DesiredRun) -> str:
        experiment = self.experiment(desired.experiment)
        run_id = self.find(experiment, ENTRY_TAG, entry.id)
        created = run_id is None
        if run_id is None:
            tags = {ENTRY_TAG: entry.id}
            if desired.parent is not None:
                parent = outbox.delivered(desired.parent).run_id or self.find(experiment, ENTRY_TAG, desired.parent)
                tags |= {PARENT_TAG: parent} if parent else {}
            run_id = self.client.create_run(experiment, milliseconds(desired.started), tags, desired.name).info.run_id
        outbox.place(entry, run_id, run_page(self.store, experiment, run_id), created)
        return run_id

    def experiment(self, name: str) -> str:
        """Return the id of an experiment; make it if it does not exist yet."""
        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                self._require_experiment(found)
            self._experiments[name] = self._create(name) if found is None else found.experiment_id
        return self._experiments[name]

    def _create(self, name: str) -> str:
        """Make an experiment, or find the one that another flow run has made meanwhile; return its id."""
        try:
            return self.client.create_experiment(name, self._artifacts)
        except MlflowException:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def find(self, experiment: str, tag: str, value: str, more: str = "") -> str | None:
        """Return the id of a run with this tag that meets the further condition `more`; None if there is none."""
        runs = self.client.search_runs([experiment], f"tags.`{tag}` = '{value}'{more}", max_results=1)
        return runs[0].info.run_id if runs else None
