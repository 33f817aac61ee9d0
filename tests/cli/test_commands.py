"""The command line: every command, its help, what it refuses, and the older names that start it."""

import functools
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.app import app, main
from minillm.annotation.command import AnnotateCommand, annotate
from tests.conftest import ROOT

COMMANDS = [
    "distill",
    "plan",
    "evaluate",
    "study",
    "system2",
    "pretrain",
    "compare",
    "promote",
    "store",
    "chat",
    "annotate",
    "ui",
    "serve",
]
OPTIONS = {
    "distill": ["[CONFIG]", "--set KEY=VALUE", "--plan"],
    "plan": ["[CONFIG]", "--set KEY=VALUE"],
    "evaluate": ["[MODEL]...", "--config FILE", "--set KEY=VALUE"],
    "study": ["[STUDY]", "--set KEY=VALUE"],
    "system2": ["[CONFIG]", "--set KEY=VALUE", "--plan"],
    "pretrain": ["[CONFIG]", "--set KEY=VALUE", "--plan"],
    "compare": ["[RUN]...", "--experiment NAME", "--methods", "--store FOLDER"],
    "promote": ["[RUN]", "--rollback NAME", "--method NAME", "--experiment NAME", "--store FOLDER"],
    "store": ["--store FOLDER", "ls", "verify", "gc"],
    "chat": [
        "{STUDENT} [TEACHER]",
        "--once MESSAGE",
        "--json",
        "--system TEXT",
        "--temperature",
        "--top-p",
        "--seed",
        "--max-tokens COUNT",
        "--context COUNT",
        "--dtype",
        "--store FOLDER",
    ],
    "annotate": ["--method", "--against", "--benchmark", "--prompts", "--seed", "--port", "--export", "[REPORT]"],
    "ui": ["--store FOLDER"],
    "serve": ["--store FOLDER"],
}


def ask(*arguments: str) -> tuple[int, str]:
    """Exit status and words of a command that ends before anything is loaded."""
    result = CliRunner().invoke(app, arguments, prog_name="minillm")
    return result.exit_code, result.output


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_lists_the_commands():
    status, words = ask("--help")
    assert status == 0
    assert re.findall(r"^  (\w+) +[A-Z]", words.split("Commands:")[1].split("Examples:")[0], re.MULTILINE) == COMMANDS
    assert "..." not in words.split("Commands:")[1].split("Examples:")[0], "each fits its line"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_its_options_and_examples(command: str):
    status, words = ask(command, "--help")
    assert status == 0
    assert [option for option in OPTIONS[command] if option not in words] == []
    shown = words.split("Examples:\n")[1].splitlines()
    assert all(f"minillm {command}" in line for line in shown)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distil"], "No such command 'distil'. Did you mean 'distill'?"),
        (["distill", "--plain"], "No such option: --plain"),
        (["promote"], "name one, or --rollback NAME, and not both"),
        (["promote", "a", "--rollback", "b"], "name one, or --rollback NAME, and not both"),
        (["promote", "--rollback", "b", "--method", "kd"], "it goes back to the champion before, whatever its"),
        (["annotate", "--prompts", "0"], "'--prompts': Input should be greater than or equal to 1"),
        (["chat", "/nowhere/model"], "/nowhere/model does not exist"),
        (["chat", "configs"], "model directory configs has no config.json"),
        (["chat", "a", "--json"], "it goes with --once"),
        (["chat", "a", "--once", " "], "the message is empty"),
        (["chat", "a", "--temperature", "0.001"], "0 as the temperature takes the likeliest token"),
        (["store", "ls", "--store", "/nowhere"], "/nowhere is not a store"),
        (["store", "--store", "/nowhere", "verify"], "/nowhere is not a store"),
        (["distill", "configs/quickstrat.yaml"], "quickstart.yaml"),
        (["plan", "--set", "methods.minillm.trainin.steps=1"], "did you mean `training`?"),
        (["evaluate", "--set", "evaluation.temperature=warm"], "evaluation.temperature"),
        (["study", "configs/none.yaml"], "configs/none.yaml"),
        (["system2", "--set", "system2=think"], "'think' is no way to ask"),
        (["pretrain", "--set", "share=[1]"], "did you mean `shares`?"),
    ],
)
def test_what_cannot_run_ends_with_status_2_and_says_why(arguments: list[str], words: str):
    status, said = ask(*arguments)
    assert status == 2
    assert words in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["report.html", "--against", "sft", "kd", "--port", "0"],
        ["--against", "sft", "kd", "--port", "0", "report.html"],
        ["--against=sft", "--against", "kd", "--port", "0", "report.html"],
    ],
)
def test_several_names_stand_behind_one_against(arguments: list[str]):
    heard: list[dict[str, object]] = []
    listening = typer.Typer()
    listening.command(cls=AnnotateCommand)(functools.wraps(annotate)(lambda **given: heard.append(given)))
    assert CliRunner().invoke(listening, arguments).exit_code == 0
    assert heard[0]["against"] == ["sft", "kd"]
    assert heard[0]["report"] == Path("report.html")
    assert heard[0]["port"] == 0


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("flows.distill", "distill"),
        ("flows.evaluation", "evaluate"),
        ("flows.study", "study"),
        ("flows.system2", "system2"),
        ("flows.pretrain", "pretrain"),
        ("flows.compare", "compare"),
        ("flows.promote", "promote"),
        ("flows.store", "store"),
    ],
)
def test_a_flow_run_as_a_program_is_its_command(module: str, command: str):
    done = start(module, "--help")
    assert done.returncode == 0
    assert done.stdout == start("cli", command, "--help").stdout


def test_annotation_beneath_the_command_has_options_of_its_own():
    done = start("minillm.annotation", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: python -m minillm.annotation")


def test_a_secret_in_a_refused_argument_is_masked():
    done = start("cli", "distill", "--store=http://ann:tell-nobody@host")
    assert done.returncode == 2
    assert "tell-nobody" not in done.stderr + done.stdout


def test_completion_names_commands_and_options():
    words = {"_MINILLM_COMPLETE": "complete_bash", "COMP_WORDS": "minillm st", "COMP_CWORD": "1"}
    assert start("cli", **words).stdout.split() == ["study", "store"]
    words |= {"COMP_WORDS": "minillm distill --p", "COMP_CWORD": "2"}
    assert start("cli", **words).stdout.split() == ["--plan"]


def test_the_console_script_is_this_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, name = scripts["minillm"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
