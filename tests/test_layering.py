"""Imports run one way, cli → flows → tasks → minillm; dependencies are pinned; text files name their encoding."""

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
    "minillm": ("prefect", "mlflow", "tasks", "flows", "cli"),
    "tasks": ("flows", "cli"),
}
ALLOWED_IN_FLOWS = {"tasks", "minillm.config", "minillm.config.loading", "minillm.errors", "flows.distill"}
OWN = ("cli", "flows", "tasks", "minillm")


def imports(floor: str) -> list[tuple[str, str]]:
    """Return (file, imported module) for every import in a floor, anywhere in its files."""
    found = []
    for path in sorted((ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
    beyond = [(f, n) for f, n in own if n not in ALLOWED_IN_FLOWS and n.split(".")[0] != "tasks"]
    assert {name for _, name in beyond} <= {"cli.app"}


def test_flows_name_the_command_only_where_they_are_run_as_programs():
    for path in (ROOT / "flows").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        program = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
        within = [ast.unparse(node) for part in program for node in ast.walk(part) if isinstance(node, ast.ImportFrom)]
        assert within == ["from cli.app import main"] * len(program)
        everywhere = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "cli.app"]
        assert len(everywhere) == len(program), path


def test_the_command_loads_nothing_before_it_knows_what_is_asked():
    heavy = "{'prefect', 'mlflow', 'torch', 'pandas', 'rich', 'uvicorn', 'httpx'} & set(sys.modules)"
    script = f"import cli.app, sys; loaded = {heavy}; assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_mathematics_knows_no_configuration():
    files = imports("minillm/objectives")
    assert files
    assert [(file, name) for file, name in files if name.startswith("minillm.config")] == []


@pytest.mark.parametrize("flow", ["distill", "study", "system2", "pretrain", "evaluation", "compare", "promote"])
def test_the_flow_process_loads_no_model_library(flow: str):
    heavy = "{'torch', 'transformers', 'datasets', 'deepspeed', 'mlflow'} & set(sys.modules)"
    script = f"import flows.{flow}, sys; loaded = {heavy}; assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_comparing_runs_loads_no_model_library():
    heavy = "{'torch', 'transformers', 'datasets', 'deepspeed'} & set(sys.modules)"
    modules = "tasks.tracking.tracked_runs, minillm.reporting.comparing.page"
    script = f"import {modules}, sys; loaded = {heavy}; assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_every_dependency_is_pinned_within_its_range():
    lines = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact versions, no paths, no local builds"
    pins = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        version = pins.get(requirement.name.lower().replace("_", "-"))
        assert version is not None, requirement.name
        assert requirement.specifier.contains(version), (requirement, version)


def test_every_text_file_is_read_and_written_as_utf_8():
    """Without `encoding`, Python uses the encoding of the locale."""
    found = []
    for path in (path for floor in OWN for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def _opens_text(call: ast.Call) -> bool:
    """Return whether a call opens a file, or starts a process, as text without naming its encoding."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg for keyword in call.keywords}
    if "encoding" in named:
        return False
    if name == "open":
        modes = [
            a.value for a in call.args if isinstance(a, ast.Constant) and re.fullmatch(r"[rwxabt+]+", str(a.value))
        ]
        own = isinstance(call.func, ast.Name) or not call.args or bool(modes)  # os.open and others take other arguments
        return own and not any("b" in str(mode) for mode in modes)
    piped = any(k.arg == "text" and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)
    return (name == "read_text" and not call.args) or (name == "write_text" and len(call.args) < 2) or piped
