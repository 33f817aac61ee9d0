"""Whole sessions of annotators in a real browser."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from minillm.annotation.judgements import Judgements
from minillm.annotation.pairs import read_answers
from tests.minillm.annotated import response, serving, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

KEYS = {"win": ("1", "3"), "tie": ("2", "2"), "loss": ("3", "1")}
"""Key to press for each choice, if the method's answer is A and if it is B."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


def open_page(browser: Browser, url: str, name: str, **options) -> Page:
    """Open the page in a new browser profile and give a name."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(10_000)
    page.goto(url)
    page.get_by_label("Your name").fill(name)
    page.keyboard.press("Enter")
    return page


def at(page: Page, number: int, total: int = 12) -> None:
    """Wait until a pair is shown and its page has loaded completely."""
    expect(page).to_have_title(f"{number} of {total} – Which answer is better?")
    page.wait_for_load_state()
    expect(page.get_by_role("banner")).to_contain_text(re.compile(rf"^\s*{number} of {total}\b"))


def press(page: Page, choice: str) -> int:
    """Press the key of a choice for minillm, whose replies are W; return the prompt's number."""
    answer = page.get_by_role("region", name="Answer A").inner_text()
    page.keyboard.press(KEYS[choice][0 if answer.startswith("Reply W") else 1])
    found = re.search(r"number (\d+)", answer)
    assert found
    return int(found[1])


def choices(store: Path, annotator: str) -> dict[int, str]:
    """Return the judgements on disk, by prompt."""
    kept = Judgements(store / "preference.db").all()
    return {judgement.index: judgement.choice for judgement in kept if judgement.annotator == annotator}


def test_a_whole_session_with_the_keys(browser: Browser, tmp_path: Path):
    meant = {}
    with serving(write_run(tmp_path)) as (url, _):
        page = open_page(browser, url, "ada")
        for number in range(1, 13):
            at(page, number)
            expect(page.get_by_text(f"{number - 1} judged by ada")).to_be_visible()
            if number == 6:
                page.reload()
                at(page, 6)
            choice = ("win", "tie", "loss")[number % 3]
            meant[press(page, choice)] = choice
        expect(page.get_by_role("heading")).to_have_text("All 12 pairs are judged")
    assert choices(tmp_path, "ada") == meant
    assert sorted(meant) == list(range(12))


def test_going_back_and_changing_a_choice(browser: Browser, tmp_path: Path):
    with serving(write_run(tmp_path)) as (url, _):
        page = open_page(browser, url, "ada")
        for number in (1, 2, 3):
            at(page, number)
            page.keyboard.press("2")
        at(page, 4)
        page.keyboard.press("ArrowLeft")
        at(page, 3)
        page.get_by_role("link", name="Back").click()
        at(page, 2)
        expect(page.get_by_role("button", pressed=True)).to_have_text(re.compile("Tie"))
        changed = press(page, "win")
        at(page, 4)
        assert sorted(choices(tmp_path, "ada").values()) == ["tie", "tie", "win"]
        assert choices(tmp_path, "ada")[changed] == "win"
        page.go_back()
        at(page, 2)
        expect(page.get_by_role("button", pressed=True)).to_have_text(re.compile("is better"))
        page.keyboard.press("ArrowRight")
        at(page, 3)


def test_a_skipped_pair_comes_again_at_the_end(browser: Browser, tmp_path: Path):
    with serving(write_run(tmp_path, prompts=3)) as (url, _):
        page = open_page(browser, url, "ada")
        at(page, 1, 3)
        page.keyboard.press("ArrowRight")
        for number in (2, 3, 1):
            at(page, number, 3)
            page.keyboard.press("2")
        expect(page.get_by_role("heading")).to_have_text("All 3 pairs are judged")


def test_a_killed_server_and_a_closed_browser_lose_nothing(browser: Browser, tmp_path: Path):
    report = write_run(tmp_path)
    with serving(report) as (url, server):
        page = open_page(browser, url, "Ada")
        meant = {}
        for number in range(1, 6):
            at(page, number)
            meant[press(page, "loss")] = "loss"
        at(page, 6)
        server.kill()
        server.wait()
        page.context.close()
    assert choices(tmp_path, "Ada") == meant
    with serving(report) as (url, _):
        page = open_page(browser, url, " ada ")
        at(page, 6)
        expect(page.get_by_text("5 judged by Ada")).to_be_visible()
        page.get_by_role("link", name="Stop for now").click()
        page.get_by_role("link", name="Ada").click()
        at(page, 6)


def test_annotators_see_the_same_pairs_on_sides_of_their_own(browser: Browser, tmp_path: Path):
    seen = {}
    with serving(write_run(tmp_path)) as (url, _):
        for annotator in ("ada", "ben"):
            page = open_page(browser, url, annotator)
            shown = []
            for number in range(1, 13):
                at(page, number)
                shown.append([page.get_by_role("region", name=f"Answer {side}").inner_text() for side in "AB"])
                page.keyboard.press("2")
            seen[annotator] = shown
        page = browser.new_page()
        page.goto(url)
        expect(page.get_by_role("listitem")).to_have_text(["ada 12 of 12", "ben 12 of 12"])
    assert [sorted(pair) for pair in seen["ada"]] == [sorted(pair) for pair in seen["ben"]]
    turned = [one != other for one, other in zip(seen["ada"], seen["ben"], strict=True)]
    assert 0 < sum(turned) < 12


def test_what_models_wrote_is_shown_and_never_run(browser: Browser, tmp_path: Path):
    bad = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'></div>{{ 7 * 7 }}&amp;\u202e\x00"

    def texts(role: str, *_) -> str:
        return bad if role == "sft" else ""

    with serving(write_run(tmp_path, texts, instruction=bad.replace("{", "(").replace("}", ")"))) as (url, _):
        page = open_page(browser, url, "ada")
        at(page, 1)
        shown = {page.get_by_role("region", name=f"Answer {side}").inner_text() for side in "AB"}
        assert shown == {bad.replace("\x00", "\ufffd"), "an empty answer"}
        assert page.get_by_role("region", name="Instruction").inner_text().startswith("<script>")
        assert page.evaluate("window.hacked") is None
        # even with a hole in the escaping, nothing would run
        page.evaluate("document.body.insertAdjacentHTML('beforeend', \"<img src=x onerror='window.hacked = 1'>\")")
        page.wait_for_timeout(300)
        assert page.evaluate("window.hacked") is None
    assert bad in read_answers(tmp_path / "artifacts" / "generate-sft", "self_inst").values()


def test_only_the_first_choice_on_a_page_counts(browser: Browser, tmp_path: Path):
    with serving(write_run(tmp_path)) as (url, _):
        page = open_page(browser, url, "ada")
        at(page, 1)
        page.evaluate(
            """for (const code of ["Digit2", "Digit1", "Digit1"])
                 document.body.dispatchEvent(new KeyboardEvent("keydown", {code, bubbles: true}))"""
        )
        at(page, 2)
        held = (
            "document.body.dispatchEvent(new KeyboardEvent('keydown', {code: 'Digit1', repeat: true, bubbles: true}))"
        )
        page.evaluate(held)
        page.keyboard.press("Control+1")
        page.wait_for_timeout(300)
        at(page, 2)
    assert list(choices(tmp_path, "ada").values()) == ["tie"]


def test_the_tab_key_reaches_everything(browser: Browser, tmp_path: Path):
    with serving(write_run(tmp_path)) as (url, _):
        page = open_page(browser, url, "ada")
        at(page, 1)
        focused = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText.trim()"
        order = []
        for _step in range(8):
            page.keyboard.press("Tab")
            order.append(page.evaluate(focused))
        assert order == [
            *("Instruction", "Answer A", "Answer B"),
            *("1 A is better", "2 Tie", "3 B is better", "Stop for now", "Next →"),
        ]
        page.get_by_role("button", name="Tie").focus()
        page.keyboard.press("Enter")
        at(page, 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_answer_above_the_other(browser: Browser, tmp_path: Path, scheme):
    def texts(*place) -> str:
        return response(*place) + " " + "unbreakable" * 40 + " word" * 400

    with serving(write_run(tmp_path, texts, context="word " * 500 + "x" * 300)) as (url, _):
        page = open_page(browser, url, "n" * 40, viewport={"width": 360, "height": 640}, color_scheme=scheme)
        at(page, 1)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        for text in page.get_by_role("region").all():
            assert text.evaluate("element => element.scrollWidth <= element.clientWidth"), "words break"
        first, second = (page.get_by_role("region", name=f"Answer {side}").bounding_box() for side in "AB")
        assert first
        assert second
        assert first["y"] + first["height"] < second["y"]
        for name in ("A is better", "Tie", "B is better"):
            button = page.get_by_role("button", name=name)
            expect(button).to_be_in_viewport()
            box = button.bounding_box()
            assert box
            assert box["height"] >= 40
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        lightness = {
            name: sum(map(int, re.findall(r"\d+", colour))) for name, colour in (("ink", ink), ("paper", paper))
        }
        assert (lightness["ink"] < lightness["paper"]) == (scheme == "light")
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_wide_window_shows_long_answers_side_by_side_each_scrolling(browser: Browser, tmp_path: Path):
    def texts(*place) -> str:
        return response(*place) + " word" * 3000

    with serving(write_run(tmp_path, texts)) as (url, _):
        page = open_page(browser, url, "ada", viewport={"width": 1280, "height": 720})
        at(page, 1)
        first, second = (page.get_by_role("region", name=f"Answer {side}") for side in "AB")
        one, other = first.bounding_box(), second.bounding_box()
        assert one
        assert other
        assert (one["y"], one["height"], one["width"]) == (other["y"], other["height"], other["width"])
        assert one["x"] + one["width"] < other["x"]
        assert page.evaluate("document.documentElement.scrollHeight") == 720, "the page itself stays"
        first.hover()
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(300)
        assert [answer.evaluate("element => element.scrollTop > 0") for answer in (first, second)] == [True, False]
        expect(page.get_by_role("button", name="Tie")).to_be_in_viewport()
