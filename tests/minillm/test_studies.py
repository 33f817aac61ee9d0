"""A study's file becomes runs; studies that cannot be compared are refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from minillm.config import Study
from minillm.config.loading import load_config, load_study
from minillm.errors import ConfigError
from tests.conftest import ROOT
from tests.minillm.direct import real_data
from tests.minillm.test_configs import STUDIES
from tests.small import write_short_experiment

MIX = "methods.minillm.policy.teacher_mix"
SCHEDULE = "methods.minillm.training.schedule"
RATE = "methods.minillm.training.learning_rate"


def write_study(folder: Path, **changes: Any) -> Path:
    base = folder / "small.yaml"
    if not base.exists():
        write_short_experiment(folder, ("sft", "minillm"))
    study = {"name": "mixing", "base": str(base), "variants": {"whole": [], "off": [f"{MIX}=0"]}, "baseline": "whole"}
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in (study | changes).items() if v is not None}, sort_keys=False), encoding="utf-8"
    )
    return path


def refusal(folder: Path, *overrides: str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load_study(write_study(folder, **changes), overrides)
    return str(error.value)


def test_every_variant_runs_with_every_seed_and_nothing_but_its_method(tmp_path: Path):
    study = load_study(write_study(tmp_path, seeds=[1, 2], runtime={"parallel_stages": 1}))
    assert [run.name for run in study.runs] == ["whole, seed 1", "off, seed 1", "whole, seed 2", "off, seed 2"]
    common = ("export=null", "runtime.parallel_stages=1", "methods[sft]=null")
    assert study.runs[3].overrides == (*common, f"{MIX}=0", "name=mixing", "seed=2")
    config = load_config(study.base, study.runs[3].overrides)
    assert (config.name, config.seed, list(config.methods)) == ("mixing", 2, ["minillm"])
    policy = config.methods["minillm"].policy
    assert policy is not None
    assert policy.teacher_mix == 0
    assert study.runtime == config.runtime, "its own stage runs where its runs do"
    assert config.runtime.store == str(tmp_path / "store"), "what the study does not change is the base's"


def test_methods_are_variants_that_one_run_a_seed_trains(tmp_path: Path):
    methods = {"variants": None, "methods": ["minillm", "sft"], "baseline": "sft", "seeds": [1, 2]}
    study = load_study(write_study(tmp_path, **methods))
    assert [run.name for run in study.runs] == ["all methods, seed 1", "all methods, seed 2"]
    assert [list(load_config(study.base, run.overrides).methods) for run in study.runs] == [["sft", "minillm"]] * 2
    assert [study.row(variant) for variant in study.changes] == ["minillm", "sft"], "each by its own row"
    assert load_study(write_study(tmp_path)).row("off") == "minillm"


def test_other_methods_are_left_out_whatever_their_names(tmp_path: Path):
    path = write_study(tmp_path)
    base = yaml.safe_load((tmp_path / "small.yaml").read_text(encoding="utf-8"))
    base["methods"] |= {name: base["methods"]["sft"] for name in ("sft.5", "SFT 0.5")}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    study = load_study(path)
    assert list(load_config(study.base, study.runs[0].overrides).methods) == ["minillm"]


def test_a_grid_is_every_combination(tmp_path: Path):
    grid = {MIX: [0, 0.5], "methods.minillm.policy.single_step": [True, False]}
    study = load_study(write_study(tmp_path, variants=None, grid=grid, baseline="teacher_mix 0.5 single_step true"))
    single = "methods.minillm.policy.single_step"
    assert study.changes == {
        "teacher_mix 0 single_step true": (f"{MIX}=0", f"{single}=true"),
        "teacher_mix 0 single_step false": (f"{MIX}=0", f"{single}=false"),
        "teacher_mix 0.5 single_step true": (f"{MIX}=0.5", f"{single}=true"),
        "teacher_mix 0.5 single_step false": (f"{MIX}=0.5", f"{single}=false"),
    }
    assert study.parameter is None


@pytest.mark.parametrize(("values", "numeric"), [([0, 0.5], True), ([True, False], False), (["a/b", "c"], False)])
def test_a_grid_over_one_number_has_a_curve(values: list[Any], numeric: bool):
    name = f"mix {str(values[0]).replace('/', '-').replace('True', 'true')}"
    study = Study(name="s", base="b", grid={"methods.x.mix": tuple(values)}, baseline=name)
    assert study.parameter == ("methods.x.mix" if numeric else None)


def test_an_override_that_does_not_fit_names_its_variant_and_the_remedy(tmp_path: Path):
    wrong = {"whole": [], "off": [f"{MIX}x=0"], "fast": [f"{RATE}=-1"]}
    message = refusal(tmp_path, variants=wrong)
    assert f"variant 'off' ({MIX}x=0)" in message
    assert "did you mean `teacher_mix`?" in message
    assert f"variant 'fast' ({RATE}=-1)" in message, "all that is wrong at once"
    assert "whole" not in message
    assert "its base with its `overrides`" in refusal(tmp_path, overrides=["student.initial.step=3"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "wohle"}, "there is no variant 'wohle'; did you mean `whole`?"),
        ({"method": "minilm"}, "has no method 'minilm'; did you mean `minillm`?"),
        ({"seeds": [1, 2, 1]}, "has 1 twice"),
        ({"variants": None, "grid": {MIX: [0, 0]}, "baseline": "teacher_mix 0"}, "two variants are named"),
        (
            {"variants": None, "grid": {SCHEDULE: ["cosine", "Cosine"]}, "baseline": "schedule cosine"},
            "'schedule cosine' and 'schedule Cosine' differ only in the form of their letters",
        ),
        ({"variants": None, "grid": {MIX: []}}, f"grid.{MIX} has no values"),
        ({"variants": None}, "exactly one of `variants`"),
        ({"methods": ["sft", "minillm"]}, "exactly one of `variants`"),
        ({"variants": None, "methods": ["sft", "minillm"], "method": "sft", "baseline": "sft"}, "leave it out beside"),
        (
            {"variants": None, "methods": ["sft", "sfft"], "baseline": "sft"},
            "has no method 'sfft'; did you mean `sft`?",
        ),
        ({"variants": None, "methods": ["sft", "sft"], "baseline": "sft"}, "two variants are named 'sft'"),
        ({"variants": {"whole": [], "a=b": [f"{MIX}=0"]}}, "'a=b' cannot be a name"),
        ({"variants": {"whole": [], "same": [f"{MIX}=0.2"]}}, "'whole' and 'same' are the same configuration"),
        ({"variants": {"whole": [], "other": ["seed=3"]}}, "variant 'other' sets seed.*own `seeds`"),
        ({"overrides": ["runtime[threads]=2"]}, "overrides sets runtime[threads], which is the same for all runs"),
        ({"overrides": ["runtime.threads=2"]}, "overrides sets runtime.threads.*own `runtime.threads`"),
        ({"variants": {"whole": [], "x": ["evaluation.benchmarks.dolly.min_reference_tokens=2"]}}, "cannot be paired"),
        ({"paralel_runs": 2}, "did you mean `parallel_runs`?"),
    ],
)
def test_what_cannot_be_a_study_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    found = refusal(tmp_path, **changes)
    assert all(part in found for part in message.split(".*")), found


def test_a_null_leaves_out_an_entry_that_is_there(tmp_path: Path):
    base = write_short_experiment(tmp_path, ("sft", "minillm"))
    assert list(load_config(base, ["methods.sft=null"]).methods) == ["minillm"]
    with pytest.raises(ConfigError, match=r"methods\.stf is null.* did you mean `sft`\?"):
        load_config(base, ["methods.stf=null"])
    study = write_study(tmp_path, variants={"whole": [], "off": [f"{MIX}=0"], "more": [f"{MIX}=0.9"]})
    assert list(load_study(study, ["variants.off=null"]).changes) == ["whole", "more"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_that_are_shipped_can_run(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    if name == "methods-dolly-study":
        real_data()
    study = load_study(ROOT / "configs" / f"{name}.yaml")
    assert (study.name, study.seeds) == (name, (1, 2, 3))
    whole = load_config(study.base, next(run for run in study.runs if study.baseline in run.variants).overrides)
    row = study.row(study.baseline)
    assert whole.methods[row] == load_config(study.base).methods[row], "the baseline is a row of the base's own table"
    assert tuple(sorted(whole.methods)) == tuple(sorted(study.rows)), "nothing else is trained"
