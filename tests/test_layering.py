"""One direction: flows → tasks → minillm; and the pins that the environment is made from."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

FORBIDDEN = {
    "minillm": ("prefect", "mlflow", "tasks", "flows"),
    "tasks": ("flows",),
}
ALLOWED_IN_FLOWS = {"tasks", "minillm.config", "minillm.loading", "minillm.errors", "flows.distill"}
OWN = ("flows", "tasks", "minillm")


def imports(floor: str) -> list[tuple[str, str]]:
    """(file, imported module) of every import in a floor, wherever it stands in the file."""
    found = []
    for path in sorted((ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [(path.name, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                found.append((path.name, node.module or ""))
    return found


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_floor_imports_one_above_it(floor: str):
    files = imports(floor)
    assert files
    assert [(file, name) for file, name in files if name.split(".")[0] in FORBIDDEN[floor]] == []


def test_flows_import_only_tasks_and_the_configuration():
    own = [(file, name) for file, name in imports("flows") if name.split(".")[0] in OWN]
    assert [(f, n) for f, n in own if n not in ALLOWED_IN_FLOWS and n.split(".")[0] != "tasks"] == []


@pytest.mark.parametrize("flow", ["distill", "study", "evaluation", "compare", "promote"])
def test_the_flow_process_loads_no_model_library(flow: str):
    heavy = "{'torch', 'transformers', 'datasets', 'deepspeed', 'mlflow'} & set(sys.modules)"
    script = f"import flows.{flow}, sys; loaded = {heavy}; assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_comparing_runs_loads_no_model_library():
    heavy = "{'torch', 'transformers', 'datasets', 'deepspeed'} & set(sys.modules)"
    script = f"import tasks.tracked_runs, minillm.reporting.runs_page, sys; loaded = {heavy}; assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_every_dependency_is_pinned_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions, no paths, no local builds"
    pins = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        version = pins.get(requirement.name.lower().replace("_", "-"))
        assert version is not None, requirement.name
        assert requirement.specifier.contains(version), (requirement, version)
