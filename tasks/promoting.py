"""Tasks that make a finished run's student the champion of its experiment or say why not, and that roll back.

Everything heavy is imported only where it is needed, so that most flows never load it.
"""

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from minillm.config import Config, Promotion
from minillm.errors import StageError
from minillm.files import local_path
from minillm.nearest import suggestion
from minillm.stages.pages import Card
from tasks.environment.settings import set_mlflow_defaults
from tasks.running.pages import show_page
from tasks.running.session import Session
from tasks.tracking.connection import tracked_runs
from tasks.tracking.contents import score_tags
from tasks.tracking.entries import ModelFacts
from tasks.tracking.tags import KEY_TAG, PARENT_TAG, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as TrackedRun
    from mlflow.entities.model_registry import ModelVersion

    from minillm.reporting.promotion import Decision

PROMOTED, NOT_PROMOTED = "Promoted", "Not promoted"
"""Names of the states in which `minillm promote` ends."""
SECTION = "promotion."
"""Prefix of the section's fields among the params of a tracked run."""


@dataclass(frozen=True)
class Outcome:
    """Result of putting a student forward."""

    name: str
    """Name of the registered model whose champion it was to become."""
    promoted: bool
    words: str
    """Sentence with the reason."""


def propose(session: Session, config: Config, ended: State) -> State:
    """Put a finished flow run's student forward, if `promotion` asks for it. Runs of a study are never put forward.

    Args:
        session: Session of the flow run; closed, so that its tracked run is finished.
        config: Configuration of the run, with the rule.
        ended: State in which the flow run ended; it stays that way, whatever comes of this.
    """
    if config.promotion is None or session.parent is not None or not ended.is_completed():
        return ended
    delivered = session.outbox.delivered(session.flow_run_id)
    try:
        if delivered.run_id is None or delivered.status != "FINISHED" or delivered.refused:
            why = session.troubles.get(f"{config.name} {session.flow_run_name}", "it did not answer")
            raise StageError(f"MLflow does not have all of this run: {why}")
        outcome = promote(delivered.run_id, str(session.store.root))
    except StageError as error:
        outcome = Outcome(config.name, False, f"not decided: {error}; later: minillm promote {session.flow_run_id}")
    return Completed(message=f"{ended.message}; {_show(outcome)}", data=ended.data)


def chosen_run(words: str, experiment: str | None, store: str) -> str:
    """Return the id of the run that a person names (see `TrackedRuns.find`)."""
    tracked = tracked_runs(store)
    return tracked.find(words, tracked.of_flows(experiment)).info.run_id


def conclude_promotion(outcome: Outcome) -> State:
    """Show the outcome on the console and in Prefect, and return the flow's final state."""
    return Completed(name=PROMOTED if outcome.promoted else NOT_PROMOTED, message=_show(outcome))


@task(task_run_name="promote", persist_result=False, cache_policy=NO_CACHE)
def promote(run_id: str, store: str, method: str | None = None, by_hand: bool = False) -> Outcome:
    """Make a run's student the champion, or say why not; its tracked run gets the verdict as tags.

    Args:
        run_id: Id of a flow's run in MLflow.
        store: `runtime.store` of the run.
        method: The student's method; by default, the one that the run's `promotion` names.
        by_hand: True if a person asks: a person may promote again what was rolled back.

    Raises:
        StageError: If MLflow does not answer, or the run has no such student.
    """
    set_mlflow_defaults()
    root = local_path(store).resolve()
    from mlflow.entities import RunTag

    from tasks.tracking.client import answering, connect

    with answering():
        client = connect(root)
        run = client.get_run(run_id)
        name = client.get_experiment(run.info.experiment_id).name
        with _held(root, name):
            outcome = _Proposal(client, root, run, name, method, by_hand).outcome()
        tags = {
            "promotion": (PROMOTED if outcome.promoted else NOT_PROMOTED).lower(),
            "promotion.reason": outcome.words,
        }
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return outcome


def roll_back(name: str, store: str) -> str:
    """Give the alias back to the champion before the present one, and return a sentence that says so.

    Args:
        name: Name of the registered model, which is the experiment's.
        store: `runtime.store` of the runs.

    Raises:
        StageError: If there is no such champion, or none before it.
    """
    client = tracked_runs(store).client
    from mlflow.exceptions import MlflowException

    from tasks.tracking.client import answering
    from tasks.tracking.registry import CHAMPION, ROLLED_BACK_TAG, lineage, names_with_champion

    with answering(), _held(local_path(store).resolve(), name):
        versions = list(itertools.islice(lineage(client, name), 2))
        if not versions:
            raise StageError(f"{name!r} has no champion; {suggestion(name, names_with_champion(client))}")
        if len(versions) == 1:
            raise StageError(f"{_called(versions[0])} of {name} is its first champion; there is none before it")
        now, before = versions
        client.set_model_version_tag(
            name, str(now.version), ROLLED_BACK_TAG, datetime.now().isoformat(sep=" ", timespec="minutes")
        )
        client.set_registered_model_alias(name, CHAMPION, str(before.version))
        with contextlib.suppress(MlflowException):  # the run may be deleted for good
            client.set_tag(str(now.run_id), "promotion", "rolled back")
    return f"the champion of {name} is {_called(before)} again, and no longer {_called(now)}"


class _Proposal:
    """One student beside the present champion; the caller sees that no other is put forward meanwhile."""

    def __init__(
        self, client: "MlflowClient", root: Path, run: "TrackedRun", name: str, method: str | None, by_hand: bool
    ) -> None:
        self.client, self.root, self.run, self.name, self.by_hand = client, root, run, name, by_hand
        rule = _rule(run.data.params)
        self.rule = rule if method is None else rule.model_copy(update={"method": method})

    def outcome(self) -> Outcome:
        """Decide whether the student becomes champion, and promote it if so."""
        from tasks.tracking.registry import ROLLED_BACK_TAG, champion, was_rolled_back

        label = self.run.info.run_name
        if self.run.info.status != "FINISHED":
            return self._refused(f"{label} is {self.run.info.status}; only a finished run is promoted")
        facts = self._candidate()
        who = f"{facts.tags['role']} of {label}"
        present = champion(self.client, self.name)
        if present is None:
            return self._crowned(facts, None, f"{who} is the first champion of {self.name}")
        if present.tags[WEIGHTS_TAG] == facts.tags[WEIGHTS_TAG]:
            return self._refused(f"{who} is the champion already, {_called(present)}")
        old = None if self.by_hand else was_rolled_back(self.client, self.name, facts.tags[WEIGHTS_TAG])
        if old is not None:
            when = old.tags[ROLLED_BACK_TAG]
            return self._refused(
                f"{who} was champion as version {old.version} and was rolled back on {when}; to compare it again: "
                f"minillm promote {self.run.info.run_id}"
            )
        if present.tags["metric"] != self.rule.metric:
            return self._refused(
                f"promotion.metric is {self.rule.metric}, but {_called(present)} became champion by "
                f"{present.tags['metric']}; set that, or begin anew by removing the alias `champion` in MLflow"
            )
        verdict = self._compared(facts.tags["role"], present)
        if not verdict.promoted:
            return self._refused(f"{who}: {verdict.reason}")
        return self._crowned(facts, present, f"{who}: {verdict.reason}")

    def _candidate(self) -> ModelFacts:
        """Return the student that is put forward.

        Raises:
            StageError: If the run exported no student of this name, or none was scored.
        """
        nested = self.client.search_runs(
            [self.run.info.experiment_id],
            f"tags.`{PARENT_TAG}` = '{self.run.info.run_id}' AND tags.stage = '{Card.kind}'",
        )
        exports = {stage.data.params["role"]: stage.data.tags for stage in nested if "artifact" in stage.data.tags}
        scores = {
            role: self.run.data.metrics[key]
            for role in exports
            if (key := f"{self.rule.metric}/{role}/mean") in self.run.data.metrics
        }
        role = self.rule.method or max(scores, key=lambda role: scores[role], default=None)
        if role is None or role not in scores:
            desired = "" if role is None else f" named {role!r}"
            raise StageError(
                f"{self.run.info.run_name} has no exported student{desired} with {self.rule.metric}; "
                f"{suggestion(role or '', scores)}"
            )
        export = exports[role]
        tags = {"role": role, "metric": self.rule.metric, "run": str(self.run.info.run_name)}
        tags[WEIGHTS_TAG] = export["input.model"]
        return ModelFacts(
            name=self.name,
            key=export[KEY_TAG],
            source=export["artifact"],
            tags=tags | score_tags(self.run.data.metrics, role),
        )

    def _compared(self, role: str, present: "ModelVersion") -> "Decision":
        from minillm.reporting.comparing.runs import MethodOfRun
        from minillm.reporting.promotion import decide

        tracked = tracked_runs(str(self.root))
        runs = (self.run, self.client.get_run(str(present.run_id)))
        candidate, champion = (
            tracked.read(run, label, self.rule.metric, with_curves=False)
            for run, label in zip(runs, ("candidate", "champion"), strict=True)
        )
        rows = MethodOfRun(candidate, role), MethodOfRun(champion, present.tags["role"])
        return decide(*rows, self.rule, _called(present))

    def _crowned(self, facts: ModelFacts, before: "ModelVersion | None", words: str) -> Outcome:
        from tasks.tracking.registry import crown

        version = crown(self.client, facts.model_copy(update={"description": words}), self.run.info.run_id, before)
        return Outcome(self.name, True, f"promoted to version {version.version} of {self.name}: {words}")

    def _refused(self, reason: str) -> Outcome:
        return Outcome(self.name, False, f"not promoted: {reason}")


def _rule(params: Mapping[str, str]) -> Promotion:
    """Return the rule in the run's configuration, or the default one."""
    section = {key.removeprefix(SECTION): value for key, value in params.items() if key.startswith(SECTION)}
    return Promotion.model_validate({field: None if value == "None" else value for field, value in section.items()})


def _show(outcome: Outcome) -> str:
    """Show the outcome on the console and on Prefect's page; return its words."""
    show_page(outcome.words, f"promotion {outcome.name}", f"Promotion in {outcome.name}")
    print(f"{'promotion':<16} {outcome.words}")
    return outcome.words


def _called(version: "ModelVersion") -> str:
    return f"version {version.version} ({version.tags['role']} of {version.tags['run']})"


def _held(root: Path, name: str) -> Any:
    """Return the lock that serialises decisions, so that of two at once the second meets the first as champion."""
    return FileLock(root / "locks" / f"promotion-{name}.lock")
