"""Secrets are hidden by form and by value in texts, errors, log records and everything that a process prints."""

import os
import subprocess
import sys

import pytest

from minillm.errors import ConfigError, StageError
from minillm.redaction import hide, redact_error, redacted, without_known_secrets
from tests.conftest import ROOT

SECRETS = {
    "https://ann:pw1@host:5000/api": "https://host:5000/api",
    "https://token1@host/x": "https://host/x",
    "postgresql+asyncpg://ann:p@ss/w:rd@db:5432/mlflow": "postgresql+asyncpg://db:5432/mlflow",
    "[a run](http://ann:pw1@[::1]:4200/runs/7)": "[a run](http://[::1]:4200/runs/7)",
    "http://h/x?page=2&token=t1&sort=a": "http://h/x?page=2&token=***&sort=a",
    "http://h/x?X-Amz-Signature=abc#end": "http://h/x?X-Amz-Signature=***#end",
    '<a href="http://h/x?a=1&amp;api_key=k1">': '<a href="http://h/x?a=1&amp;api_key=***">',
    "http://h/x?key=k1&apiKey=k2&x-functions-key=f&sig=s1&x.auth=a1": "http://h/x?key=***&apiKey=***&x-functions-key=f"
    "&sig=***&x.auth=***",
    "http://10.0.0.1:5000,ann:pw1@h/x": "http://h/x",
    "{'Authorization': 'Basic YW5uOnB3MQ=='}": "{'Authorization': 'Basic ***'}",
    "Authorization: Bearer abc.def-1": "Authorization: Bearer ***",
    "host=db user=ann password=pw1 dbname=m": "host=db user=ann password=*** dbname=m",
}
PLAIN = (
    "http://127.0.0.1:5000/#/experiments/1/runs/7?workflowType=machine_learning",
    "http://h:8080/users/@me, ann@example.org",
    "see https://h/a:b@c and max_tokens=256, lr=1e-3",
    "http://[::1]:4200/a@b",
    "http://h/x?sort_key=name&monkey=3&design=a&oauth_design=b",
    "http://127.0.0.1:5000,ann@x.org",
    "Basic understanding of bearer assets",
)


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_goes_by_its_form_and_the_rest_stays(text: str):
    assert redacted(text) == SECRETS[text]
    assert redacted(redacted(text)) == SECRETS[text]


@pytest.mark.parametrize("text", PLAIN)
def test_what_holds_no_secret_stays_as_it_is(text: str):
    assert redacted(text) == text


def test_values_of_secret_variables_go_wherever_they_stand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open sesame/1")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ann:correct-horse")
    monkeypatch.setenv("SOME_DATABASE", "mysql://ann:battery%20staple@db/x")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "not a secret")
    monkeypatch.setenv("HF_TOKEN", "short")
    hide("a-key-from-elsewhere")
    said = "open sesame/1, open%20sesame%2F1, correct-horse, battery staple, battery%20staple, a-key-from-elsewhere"
    assert redacted(said) == "***, ***, ***, ***, ***, ***"
    assert without_known_secrets(f"ftp://ann:pw@h {said}") == "ftp://ann:pw@h ***, ***, ***, ***, ***, ***"
    assert redacted("not a secret, short, reopen sesame/10") == "not a secret, short, reopen sesame/10"


@pytest.mark.parametrize(
    "written",
    [
        "pä<ss&wo\"rd'9",
        "p%C3%A4%3Css%26wo%22rd%279",
        "pä&lt;ss&amp;wo&#34;rd&#39;9",
        "pä&lt;ss&amp;wo\"rd'9",
        "pä<ss&wo\\\"rd'9",
        "p\\u00e4<ss&wo\\\"rd'9",
    ],
    ids=["plain", "address", "html", "svg", "json", "ascii json"],
)
def test_a_known_secret_goes_in_whatever_way_it_is_written(monkeypatch: pytest.MonkeyPatch, written: str):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pä<ss&wo\"rd'9")
    assert without_known_secrets(f"[{written}]") == "[***]"


def test_a_known_secret_goes_behind_a_line_break_that_is_written_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    assert without_known_secrets(repr("first\ncorrect-horse")) == r"'first\n***'"


@pytest.mark.parametrize("kind", [StageError, ConfigError])
def test_errors_that_users_read_have_none(kind: type[Exception]):
    assert str(kind("no reply from http://ann:pw1@h/api")) == "no reply from http://h/api"


def test_errors_of_other_libraries_lose_theirs_in_place():
    class WrappedError(Exception):
        def __init__(self, inner: Exception) -> None:
            super().__init__(inner)
            self.inner, self.url = inner, "http://ann:pw1@h"

    inner = ConnectionError("http://ann:pw1@h refused")
    inner.__cause__ = OSError("http://ann:pw1@h")
    outer = WrappedError(inner)
    redact_error(outer)
    assert (str(outer), outer.url, str(inner.__cause__)) == ("http://h refused", "http://h", "http://h")


PROGRAM = """
import logging, threading, warnings
import tasks
logging.basicConfig(format="%(name)s %(message)s")
logging.getLogger("any.child").error("at %s", "http://ann:pw1@h")
try:
    raise ValueError("http://ann:pw1@h")
except ValueError:
    logging.getLogger("other").exception("failed")
print("printed http://ann:pw1@h")
warnings.warn("warned of http://ann:pw1@h")
thread = threading.Thread(target=lambda: 1 / len("http://ann:pw1@h"[99:]))
thread.start(); thread.join()
raise RuntimeError("uncaught http://ann:pw1@h")
"""


def test_nothing_that_a_process_logs_prints_or_dies_with_has_one(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    for words in (
        "any.child at http://h",
        "ValueError: http://h",
        "printed http://h",
        "warned of http://h",
        "RuntimeError: uncaught http://h",
    ):
        assert words in said
    assert "pw1" not in said
