"""Promotion against a real MLflow database: which students become champion, which do not and why, and rolling back."""

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from minillm.config import Config
from minillm.errors import StageError
from minillm.store.artifacts import Store
from tasks.promoting import Outcome, promote, roll_back
from tasks.store import users
from tasks.tracking import contents
from tasks.tracking.entries import DatasetFacts, DesiredRun
from tasks.tracking.outbox import Outbox
from tests.small import small_config

PROMPTS = 20


@dataclass
class Experiment:
    """Finished runs, each with one scored and exported student."""

    config: Config

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def root(self) -> Path:
        return Store(self.config.runtime.store).root

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def add(
        self, name: str, gains: tuple[float, ...], weights: str = "", status: str = "FINISHED", **changes: str
    ) -> str:
        """Track a run whose prompt n scores 30 + n + gains[n % len(gains)], and return its id in MLflow.

        Args:
            name: Name of the run.
            gains: Gains of the prompts, used in turn.
            weights: Digest of its student's weights; by default, one of its own.
            status: Status with which the run ended.
            changes: `digest`, of the benchmark's data; `strategy`, of sampling; and params `promotion.…`.
        """
        identity = f"{self.name}-{name}"
        desired = contents.flow_run(self.config, identity, name)
        digest = changes.pop("digest", "d1")
        desired.datasets = [
            DatasetFacts(name="benchmark/dolly", digest=digest, source_type="local", source="{}", context="evaluation")
        ]
        desired.params["evaluation.strategy"] = changes.pop("strategy", "sample")
        desired.params |= changes
        values = [30 + n + gains[n % len(gains)] for n in range(PROMPTS)]
        desired.metrics = dict.fromkeys(("rouge_l/minillm/mean", "exact_match/minillm/mean"), sum(values) / PROMPTS)
        scores = self.root / "files" / identity / "scores.parquet"
        scores.parent.mkdir(parents=True)
        rows = [
            ("dolly", n, seed, value / 100, value / 100, True) for n, value in enumerate(values) for seed in (10, 20)
        ]
        columns = ["benchmark", "index", "seed", "rouge_l", "exact_match", "headline"]
        pd.DataFrame(rows, columns=columns).to_parquet(scores)
        desired.files = {str(scores): "scores/minillm"}
        export = DesiredRun(
            name="export minillm", experiment=self.name, parent=identity, started=time.time(), ended=time.time()
        )
        export.tags = {"stage": "model", "artifact": f"/store/artifacts/model-{name}", "minillm.key": f"key-{name}"}
        export.tags["input.model"] = weights or name
        export.params, export.status = {"role": "minillm"}, "FINISHED"
        box = Outbox(self.root)
        box.open(identity, desired.model_copy(update={"status": status, "ended": time.time()}))
        box.open(f"{identity}-export", export)
        assert box.close()
        return box.delivered(identity).run_id or ""

    def promote(self, run_id: str, by_hand: bool = False) -> Outcome:
        return promote.fn(run_id, str(self.root), by_hand=by_hand)

    def champion(self) -> str:
        """Return the key of the champion's artifact."""
        return self.client.get_model_version_by_alias(self.name, "champion").tags["minillm.key"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return small_config(tmp_path_factory.mktemp("promoting"))


@pytest.fixture
def experiment(config: Config, request: pytest.FixtureRequest) -> Experiment:
    """Make an experiment for each test, all in one database."""
    return Experiment(config.model_copy(update={"name": f"e{request.session.items.index(request.node)}"}))


def test_the_first_finished_run_is_champion_and_a_better_one_follows(experiment: Experiment):
    e = experiment.name
    first = experiment.add("first", (0.0,))
    outcome = experiment.promote(first)
    assert outcome.words == f"promoted to version 1 of {e}: minillm of {e} first is the first champion of {e}"
    better = experiment.promote(second := experiment.add("second", (2.0, 4.0)))
    assert better.words == (
        f"promoted to version 2 of {e}: minillm of {e} second: Rouge-L +3.0 [+2.5, +3.5] against "
        f"version 1 (minillm of {e} first), p < 0.001, 20 prompts of 1 benchmark"
    )
    version = experiment.client.get_model_version_by_alias(e, "champion")
    assert (str(version.version), version.run_id) == ("2", second)
    assert version.source == "/store/artifacts/model-second"
    assert version.tags["champion.before"] == "1"
    tags = experiment.client.get_run(second).data.tags
    assert (tags["promotion"], tags["promotion.reason"]) == ("promoted", better.words)
    names = users(Store(experiment.root))
    assert names["key-first"] >= {f"champion 1 of {e}"}, "its files stay, though its run may be deleted"
    assert names["key-second"] >= {f"champion 2 of {e}"}


def test_no_clear_gain_is_no_promotion_and_says_by_how_much(experiment: Experiment):
    experiment.promote(experiment.add("first", (0.0,)))
    equal = experiment.add("equal", (3.0, -3.0))
    outcome = experiment.promote(equal)
    assert not outcome.promoted
    assert re.search(r"Rouge-L \+0.0 \[−1.4, \+1.4\] against version 1 .*, p = 1.000", outcome.words)
    assert "it takes a gain with p < 0.05" in outcome.words
    assert experiment.client.get_run(equal).data.tags["promotion"] == "not promoted"
    worse = experiment.promote(experiment.add("worse", (-2.0, -4.0)))
    assert "Rouge-L −3.0" in worse.words
    assert "p < 0.001" in worse.words
    assert not worse.promoted, "clear, but no gain"
    slight = {"promotion.method": "None", "promotion.metric": "rouge_l", "promotion.significance": "0.001"}
    chance = experiment.promote(experiment.add("slight", (2.0, -1.0), **slight))
    assert "it takes a gain with p < 0.001" in chance.words
    assert not chance.promoted
    assert experiment.champion() == "key-first"


def test_what_cannot_be_compared_is_refused_with_the_reason(experiment: Experiment):
    e = experiment.name
    experiment.promote(experiment.add("first", (0.0,)))
    refusals = {
        "data": ({"digest": "d2"}, "dolly: its data differ (digest d2 instead of d1)"),
        "greedy": ({"strategy": "greedy"}, "evaluation.strategy is greedy instead of sample"),
        "metric": (
            {"promotion.metric": "exact_match"},
            f"promotion.metric is exact_match, but version 1 (minillm of {e} first) became champion by rouge_l",
        ),
        "killed": ({"status": "KILLED"}, f"{e} killed is KILLED; only a finished run is promoted"),
        "same": ({"weights": "first"}, f"minillm of {e} same is the champion already, version 1"),
    }
    for name, (changes, reason) in refusals.items():
        outcome = experiment.promote(experiment.add(name, (9.0,), **changes))
        assert not outcome.promoted
        assert reason in outcome.words, name
    assert experiment.champion() == "key-first"
    absent = experiment.add("absent", (9.0,), **{"promotion.method": "minilm"})
    with pytest.raises(StageError, match="no exported student named 'minilm' with rouge_l; did you mean `minillm`"):
        experiment.promote(absent)


def test_one_goes_back_through_all_champions_and_what_was_taken_back_stays_away(experiment: Experiment):
    e, store = experiment.name, str(experiment.root)
    runs = {name: experiment.add(name, (gain,)) for name, gain in (("a", 0.0), ("b", 2.0), ("c", 4.0))}
    for run_id in runs.values():
        assert experiment.promote(run_id).promoted
    told = roll_back(e, store)
    assert told == (
        f"the champion of {e} is version 2 (minillm of {e} b) again, and no longer version 3 (minillm of {e} c)"
    )
    assert experiment.client.get_run(runs["c"]).data.tags["promotion"] == "rolled back"
    again = experiment.promote(experiment.add("c-again", (4.0,), weights="c"))
    assert not again.promoted
    assert "was champion as version 3 and was rolled back on " in again.words
    assert experiment.promote(experiment.add("d", (3.0,))).promoted, "version 4, after version 2"
    for champion in ("key-b", "key-a"):
        roll_back(e, store)
        assert experiment.champion() == champion
    with pytest.raises(StageError, match=rf"version 1 \(minillm of {e} a\) of {e} is its first champion"):
        roll_back(e, store)
    with pytest.raises(StageError, match=f"'{e}x' has no champion; did you mean `{e}`"):
        roll_back(f"{e}x", store)
    assert experiment.promote(runs["c"], by_hand=True).promoted, "a person may"


def test_of_two_put_forward_at_once_one_wins(experiment: Experiment):
    experiment.promote(experiment.add("first", (0.0,)))
    rivals = [experiment.add(name, (5.0,)) for name in ("left", "right")]
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda run=run: outcomes.append(experiment.promote(run))) for run in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.promoted for outcome in outcomes) == [False, True]
    (loser,) = [outcome for outcome in outcomes if not outcome.promoted]
    assert "Rouge-L +0.0 against version 2" in loser.words, "against the other one"
