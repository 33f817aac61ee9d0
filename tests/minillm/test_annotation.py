"""Pairs, sides and judgements; the page over HTTP; the command."""

import contextlib
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest

from minillm.annotation.judgements import Compared, Judgement, Judgements, read_csv, write_csv
from minillm.annotation.pairs import Pair, answers_digest, draw_pairs, mismatch, newest_report, read_report
from minillm.annotation.session import AnnotationSession, swapped
from minillm.errors import StageError
from tests.conftest import ROOT
from tests.minillm.annotated import ROLES, response, serving, write_run


def make_pair(index: int = 0) -> Pair:
    digest = answers_digest("One.", "Another.")
    compared = Compared(benchmark="self_inst", index=index, seed=10, method="minillm", other="sft", answers=digest)
    return Pair(compared, "What?", "", ("One.", "Another."))


def make_judgement(**changed) -> Judgement:
    values = {"benchmark": "self_inst", "index": 3, "seed": 10, "method": "minillm", "other": "sft", "answers": "a1b2"}
    values |= {"annotator": "ada", "choice": "win", "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}
    return Judgement(**(values | changed))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "minillm.annotation", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)


# Pairs


def test_a_pair_has_the_answers_of_both_methods_to_its_prompt(tmp_path: Path):
    pairs = draw_pairs(read_report(write_run(tmp_path)), "kd", ["teacher"], "dolly", 5, 1)
    assert len({pair.compared.index for pair in pairs}) == len(pairs) == 5
    for pair in pairs:
        assert pair.texts == (
            response("kd", "dolly", pair.compared.index, 10),
            response("teacher", "dolly", pair.compared.index, 10),
        )
        assert pair.instruction == f"What is meant by {pair.compared.index}?"


def test_without_options_the_compared_method_meets_the_first_student_on_the_papers_benchmark(tmp_path: Path):
    run = read_report(write_run(tmp_path / "four"))
    assert {
        (pair.compared.method, pair.compared.other, pair.compared.benchmark)
        for pair in draw_pairs(run, None, (), None, 60, 1)
    } == {("minillm", "sft", "self_inst")}
    alone = read_report(write_run(tmp_path / "two", roles=("teacher", "kd"), benchmarks=("dolly",)))
    assert {
        (pair.compared.method, pair.compared.other, pair.compared.benchmark)
        for pair in draw_pairs(alone, None, (), None, 60, 1)
    } == {("kd", "teacher", "dolly")}


def test_prompts_are_drawn_by_the_seed_and_more_include_the_fewer(tmp_path: Path):
    run = read_report(write_run(tmp_path, prompts=40))
    drawn = {
        (count, seed): [pair.compared.index for pair in draw_pairs(run, None, (), None, count, seed)]
        for count, seed in ((10, 1), (20, 1), (10, 2), (60, 1))
    }
    assert drawn[10, 1] == [pair.compared.index for pair in draw_pairs(run, None, (), None, 10, 1)]
    assert set(drawn[10, 1]) < set(drawn[20, 1])
    assert set(drawn[10, 1]) != set(drawn[10, 2])
    assert sorted(drawn[60, 1]) == list(range(40)), "all there are"
    assert drawn[60, 1] != list(range(40))


def test_several_others_meet_the_method_on_the_same_prompts(tmp_path: Path):
    pairs = draw_pairs(read_report(write_run(tmp_path)), None, ("sft", "teacher"), None, 6, 1)
    prompts = {
        other: {pair.compared.index for pair in pairs if pair.compared.other == other} for other in ("sft", "teacher")
    }
    assert prompts["sft"] == prompts["teacher"]
    assert len(pairs) == 12
    again = draw_pairs(read_report(tmp_path / "artifacts" / "report-r"), None, ("sft", "teacher", "sft"), None, 6, 1)
    assert again == pairs, "named twice, compared once"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"method": "minilm"}, "no method minilm; did you mean `minillm`"),
        ({"against": ["ftt"]}, "no method ftt"),
        ({"benchmark": "self-inst"}, "no benchmark self-inst; did you mean `self_inst`"),
        ({"against": ["kd", "minillm"]}, "minillm is compared with itself"),
    ],
)
def test_what_the_run_does_not_have_is_refused(tmp_path: Path, choice, message):
    arguments = {"method": None, "against": (), "benchmark": None, "prompts": 5, "seed": 1} | choice
    with pytest.raises(StageError, match=message):
        draw_pairs(read_report(write_run(tmp_path)), **arguments)


def test_a_seed_that_names_no_random_numbers_is_refused():
    done = command("--seed", "-1")
    assert done.returncode == 2
    assert "Invalid value for '--seed': Input should be greater than or equal to 0" in done.stderr


def test_a_report_is_found_from_its_page_its_folder_or_its_store(tmp_path: Path):
    page = write_run(tmp_path)
    assert read_report(page) == read_report(page.parent) == read_report(newest_report(tmp_path))
    assert read_report(page).store == tmp_path
    with pytest.raises(StageError, match="is not the report of a run"):
        read_report(tmp_path)
    with pytest.raises(StageError, match="there is no report in"):
        newest_report(tmp_path / "elsewhere")
    (tmp_path / "artifacts" / "generate-kd").rename(tmp_path / "gone")
    with pytest.raises(StageError, match="generate-kd, which is gone"):
        read_report(page)


# Sides


def test_sides_are_balanced_and_each_annotators_own():
    sides = {
        annotator: [swapped(annotator, make_pair(index)) for index in range(1000)] for annotator in ("ada", "ben", "cy")
    }
    for turned in sides.values():
        assert 450 < sum(turned) < 550, "six standard deviations are 95"
    same = sum(one == other for one, other in zip(sides["ada"], sides["ben"], strict=True))
    assert 400 < same < 600


def test_sides_are_the_same_in_every_process():
    assert [swapped("ada", make_pair(index)) for index in range(8)] == [
        True, False, False, True, True, True, False, True
    ]  # fmt: skip


def test_what_is_said_of_a_and_b_counts_for_the_method_that_wrote_it(tmp_path: Path):
    pairs = [make_pair(index) for index in range(20)]
    session = AnnotationSession(pairs, Judgements(tmp_path / "preference.db"))
    for number in range(1, 21):
        session.choose("ada", number, "a" if session.texts("ada", number)[0] == "One." else "b")
        session.choose("ben", number, "a" if session.texts("ben", number)[0] == "Another." else "b")
    choices = Counter((judgement.annotator, judgement.choice) for judgement in session.judgements.all())
    assert choices == {("ada", "win"): 20, ("ben", "loss"): 20}
    sides = Counter(session.judged()["ada"].values())
    assert min(sides["a"], sides["b"]) > 4, "the method stood on both sides"
    session.choose("ada", 7, "tie")
    assert session.judged()["ada"][7] == "tie"
    assert len(session.judgements.all()) == 40, "a choice replaces the one before it"


def test_the_next_open_pair_is_after_this_one_then_from_the_beginning(tmp_path: Path):
    session = AnnotationSession([make_pair(index) for index in range(4)], Judgements(tmp_path / "preference.db"))
    assert session.next_open("ada") == 1
    session.choose("ada", 2, "tie")
    assert session.next_open("ada", after=1) == 3
    session.choose("ada", 4, "tie")
    assert session.next_open("ada", after=4) == 1
    session.choose("ada", 1, "tie")
    session.choose("ada", 3, "tie")
    assert session.next_open("ada", after=3) is None
    assert session.next_open("ben") == 1


def test_a_page_costs_the_same_however_many_judgements_there_are(tmp_path: Path):
    session = AnnotationSession([make_pair(index) for index in range(60)], Judgements(tmp_path / "preference.db"))
    others = ((str(index), index, 1, "x", "y", "d", f"annotator {index % 50}", "win", "2026-01-01T00:00:00Z")
              for index in range(100_000))  # fmt: skip
    with contextlib.closing(sqlite3.connect(session.judgements.path)) as connection, connection:
        connection.executemany("INSERT INTO judgement VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", others)
    before = time.process_time()
    session.choose("ada", 1, "b")
    assert session.judged_by("ada") == {1: "b"}
    assert session.judged() == {"ada": {1: "b"}}
    assert session.next_open("ada", after=0) == 2
    assert time.process_time() - before < 0.3, "reading all of them takes a second"


# Judgements on disk


def test_several_servers_may_write_at_once(tmp_path: Path):
    path = tmp_path / "preference.db"

    def write(annotator: str) -> None:
        mine = Judgements(path)
        for index in range(20):
            mine.keep(make_judgement(index=index, annotator=annotator))

    threads = [threading.Thread(target=write, args=(name,)) for name in ("ada", "ben", "cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(judgement.annotator for judgement in Judgements(path).all()) == {"ada": 20, "ben": 20, "cy": 20}


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "preference.db"
    path.write_text("notes of mine, long enough to be read as something else" * 50, encoding="utf-8")
    with pytest.raises(StageError, match=r"preference\.db.*move the file away"):
        Judgements(path)
    assert path.read_text(encoding="utf-8").startswith("notes of mine")


def test_judgements_come_back_from_their_csv_file(tmp_path: Path):
    written = [make_judgement(annotator="Zoë O'Neil"), make_judgement(index=4, choice="tie", benchmark='"a", b')]
    write_csv(tmp_path / "x.csv", written)
    assert read_csv(tmp_path / "x.csv") == written
    text = (tmp_path / "x.csv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "benchmark,index,seed,method,other,answers,annotator,choice,time"
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())  # as a spreadsheet saves it
    assert read_csv(tmp_path / "x.csv") == written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("win", "won"), "line 2: choice is 'won'"),
        (lambda text: text.replace(",3,", ",three,"), "line 2: index is 'three'"),
        (lambda text: text.replace(",ada,", ",,"), "line 2: annotator is ''"),
        (lambda text: text.replace("choice", "verdict"), "no column choice"),
        (lambda text: text.replace(",", ";"), "no column benchmark, index"),
        (lambda text: text + text.splitlines()[1] + "\n", "line 3: ada judged this pair on line 2 already"),
        (lambda text: text + text, "line 3: index is 'index'"),
        (lambda text: text + "self_inst,3\n", "line 3: seed is None"),
        (lambda text: text.splitlines()[0], "has no judgements"),
        (lambda text: "", "has no judgements"),
        (lambda text: text.encode("utf-16"), "cannot be read as a CSV file in UTF-8"),
    ],
)
def test_a_csv_file_that_is_not_right_is_refused_by_line(tmp_path: Path, change, message):
    path = tmp_path / "x.csv"
    write_csv(path, [make_judgement()])
    changed = change(path.read_text(encoding="utf-8"))
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(StageError, match=message):
        read_csv(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"method": "minilm"}, "no method minilm; did you mean `minillm`"),
        ({"other": "seqkd"}, "no method seqkd"),
        ({"benchmark": "vicuna"}, "no benchmark vicuna"),
        ({"index": 12}, "no answer to prompt 12 of self_inst with seed 10"),
        ({"seed": 30}, "no answer to prompt 3 of self_inst with seed 30"),
        ({"index": 4}, "the answers of minillm and sft to prompt 4 of self_inst are not those that were judged"),
        ({"method": "sft", "other": "minillm"}, "are not those that were judged"),
    ],
)
def test_judgements_are_recognised_by_the_answers(tmp_path: Path, changed, message):
    run = read_report(write_run(tmp_path))
    (pair,) = [pair for pair in draw_pairs(run, None, (), None, 60, 1) if pair.compared.index == 3]
    problem = mismatch(make_judgement(answers=pair.compared.answers, **changed), run.responses)
    assert problem is None if message is None else message in (problem or "")


# The page over HTTP


def test_the_page_never_says_which_method_wrote_what(tmp_path: Path):
    with serving(write_run(tmp_path), "--against", "sft", "kd", "teacher") as (url, _), httpx.Client() as browser:
        pages = [browser.get(url)]
        for number in range(1, 37):
            page = f"{url}/annotators/ada/pairs/{number}"
            pages.append(browser.get(page))
            pages.append(browser.post(page, data={"preferred": "a"}, headers={"Origin": url}))
        pages.append(browser.get(f"{url}/annotators/ada/done"))
        pages += [browser.get(f"{url}/static/{name}") for name in ("page.css", "keys.js")]
    for page in pages:
        assert page.status_code in (200, 303)
        told = page.text + str(page.headers)
        assert not re.search("|".join((*ROLES, r"\bwin\b", r"\bloss\b")), told, re.IGNORECASE)


def test_only_this_machine_and_this_page_are_answered(tmp_path: Path):
    with serving(write_run(tmp_path)) as (url, process):
        listening = [c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        assert httpx.get(url, headers={"Host": "evil.example"}).status_code == 400, "DNS rebinding"
        page = f"{url}/annotators/ada/pairs/1"
        for origin in ({}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:1"}):
            refused = httpx.post(page, data={"preferred": "a"}, headers=origin)
            assert refused.status_code == 403, origin
        policy = httpx.get(page).headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        localhost = url.replace("127.0.0.1", "localhost")
        assert httpx.get(localhost).status_code == 200
    assert Judgements(tmp_path / "preference.db").all() == []


def test_addresses_made_up_by_hand_do_no_harm(tmp_path: Path):
    with serving(write_run(tmp_path)) as (url, _):
        for address in ("annotators/ada/pairs/0", "annotators/ada/pairs/13", "static/../page.py", "docs"):
            assert httpx.get(f"{url}/{address}").status_code == 404, address
        assert httpx.get(f"{url}/annotators/=1+1/pairs/1").status_code == 422
        wrong = httpx.post(f"{url}/annotators/ada/pairs/1", data={"preferred": "minillm"}, headers={"Origin": url})
        assert wrong.status_code == 422
        done = httpx.get(f"{url}/annotators/ada/done")
        assert done.headers["Location"] == "/annotators/ada/pairs/1", "it is not"
    assert Judgements(tmp_path / "preference.db").all() == []


# The command


def test_judgements_of_this_run_are_exported_however_they_were_drawn(tmp_path: Path):
    report = write_run(tmp_path)
    run = read_report(report)
    judgements = Judgements(run.store / "preference.db")
    nothing = command(str(report), "--export", str(tmp_path / "x.csv"))
    assert (nothing.returncode, (tmp_path / "x.csv").exists()) == (2, False)
    assert "nobody has judged" in nothing.stderr
    AnnotationSession(draw_pairs(run, None, (), None, 5, 1), judgements).choose("ada", 1, "a")
    AnnotationSession(draw_pairs(run, "kd", ("teacher",), "dolly", 5, 2), judgements).choose("ben", 2, "tie")
    judgements.keep(make_judgement())  # of the answers of another run
    done = command(str(report), "--export", str(tmp_path / "x.csv"))
    assert done.returncode == 0, done.stderr
    assert "2 judgements by ada, ben" in done.stdout
    assert f"evaluation.preference.path={tmp_path / 'x.csv'}" in done.stdout
    assert [judgement.annotator for judgement in read_csv(tmp_path / "x.csv")] == ["ada", "ben"]
    nowhere = command(str(report), "--export", str(tmp_path / "nowhere" / "x.csv"))
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert "No such file or directory; give another file" in nowhere.stderr


def test_a_taken_port_is_named_with_its_remedy(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = command(str(write_run(tmp_path)), "--port", port)
    assert done.returncode == 2
    assert done.stderr == (
        f"port {port} of 127.0.0.1 cannot be used: another program uses it; choose another with --port\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_when_told_to_with_a_browser_still_connected(tmp_path: Path, number: signal.Signals):
    with serving(write_run(tmp_path)) as (url, process), httpx.Client() as browser:
        browser.post(f"{url}/annotators/ada/pairs/1", data={"preferred": "a"}, headers={"Origin": url})
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Judged: ada 1." in output


def test_mistakes_on_the_command_line_are_told_in_one_line(tmp_path: Path):
    done = command(str(tmp_path / "report.html"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = command(str(write_run(tmp_path)), "--prompts", "0")
    assert done.returncode == 2
    assert "'--prompts': Input should be greater than or equal to 1" in done.stderr
