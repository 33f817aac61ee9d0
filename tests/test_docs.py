"""The documents name only things that exist: files, functions, make targets, configurations."""

import ast
import re

import pytest

from tests.conftest import ROOT

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "data/README.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
SOURCES = [path for floor in ("cli", "flows", "tasks", "minillm") for path in sorted((ROOT / floor).rglob("*.py"))]


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_exist(document):
    named = re.findall(r"`((?:cli|flows|tasks|minillm|tests|docs|configs|data/embedded)/[\w./*-]+)`", text(document))
    named += [target.split("#")[0] for target in re.findall(r"\]\(([^)#:]+)\)", text(document))]
    missing = [n for n in named if not list(ROOT.glob(n)) and not list((ROOT / document).parent.glob(n))]
    assert missing == []


def test_readme_is_read_in_one_sitting():
    assert len(text("README.md").splitlines()) <= 150


def test_the_map_names_every_folder():
    table = text("README.md").split("## Map")[1].split("\n\n")[1]
    folders = {path.parent.name for floor in ("tasks", "minillm") for path in (ROOT / floor).glob("*/__init__.py")}
    assert {f"{name}/" for name in {"cli", "flows", "tasks", "minillm"} | folders} == {
        name.removeprefix("minillm/") or name for name in re.findall(r"`([\w/]+/)`", table)
    }


def test_the_first_line_of_a_module_is_one_sentence():
    one_sentence = re.compile(r'"""(.(?!\. [A-Z]))+\.("""|\n)')
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SOURCES}
    assert [name for name, source in files.items() if not one_sentence.match(source)] == []


def test_functions_on_the_tour_stand_where_it_says():
    defined = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.setdefault(node.name, set()).add(path.relative_to(ROOT).as_posix())
    pairs = re.findall(
        r"(?<!stage[ \n])`([\w.]+)`(?: in)? \(?`((?:flows|tasks|minillm)/[\w/]+\.py)`", text("docs/tour.md")
    )
    assert len(pairs) >= 20
    wrong = [(name, file) for name, file in pairs if file not in defined.get(name.split(".")[-1], set())]
    assert wrong == []


def test_make_targets_named_exist():
    targets = set(re.findall(r"^(\w+):", text("Makefile"), flags=re.MULTILINE))
    for document in DOCUMENTS:
        assert set(re.findall(r"`make (\w+)", text(document))) <= targets, document
        assert set(re.findall(r"^make (\w+)", text(document), flags=re.MULTILINE)) <= targets, document


def test_configurations_in_the_table_exist():
    named = re.findall(r"`([\w.-]+)`", text("docs/configurations.md").split("| configuration |")[1].split("\n\n")[0])
    configurations = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert {name for name in named if not name.startswith("data")} == configurations


def test_the_example_of_a_stage_is_the_code():
    sources = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    examples = re.findall(r"^   ```python\n(.*?)^   ```$", text("CONTRIBUTING.md"), flags=re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    stripped = [[line.strip() for line in example.splitlines() if line.strip()] for example in examples]
    code = "\n".join(line.strip() for line in sources.splitlines() if line.strip())
    assert [lines for lines in stripped if "\n".join(lines) not in code] == []
