"""Pages from Markdown: what others wrote shows as it is and does nothing, and figures, boxes and rows are in place."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from matplotlib.figure import Figure

from minillm.redaction import MASK
from minillm.reporting.markdown import SHOWN_CHARACTERS, Markdown, address, code, escaped, quoted, table
from minillm.reporting.pages import PARSER, as_html, images, write_page

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "[x](http://evil/)",
    "![](http://evil/x.png)",
    "![x][y]",
    "[y]: http://evil/",
    "<http://evil/>",
    "a | b || c \\| d",
    "`code` ``` ~~~",
    "*bold* __bold__ ~~struck~~ _x",
    "&lt;b&gt; &#60; &amp; AT&T",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "1) item",
    "123456789. item",
    "> quote",
    "---",
    "===",
    "    indented",
    "\\",
    "a\\*b",
    "two\nlines\r\n\r\nand a third",
    "| --- | --- |",
    "x](javascript:alert(1)) [y",
    "\u202ertl and \u2028 a line separator",
    "\x00\x1b[31mred",
    "*",
    "** **",
    "a * b < c & d_e [1.0, 2.0] {x}",
    "[1, 2](http://evil/)",
    "rouge_l #5 a#b ##",
    "10 % of 3.5 < 4",
]


class Read(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def seen(text: str) -> str:
    """As a reader sees it on one line."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", text.replace("\r\n", "\n").replace("\n", "↵"))
    return re.sub(" +", " ", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_others_wrote_shows_as_it_is_and_makes_nothing(text: str):
    paragraph = Read(PARSER.render(f"{escaped(text)}\n"))
    assert (paragraph.tags, paragraph.text.strip()) == (["p"], seen(text).strip())
    inside = Read(PARSER.render(f"## {escaped(text)}\n\n**{escaped(text)}.** - {escaped(text)} ({escaped(text)})\n"))
    assert inside.tags[0] == "h2"
    assert set(inside.tags) <= {"h2", "p", "strong"}
    assert inside.text.count(seen(text).strip()) >= 4
    label = Read(PARSER.render(f"[{escaped(text)}](http://ours/)\n"))
    assert label.tags == ["p", "a"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_stays_a_cell(text: str):
    frame = pd.DataFrame({"plain": ["1.0", text], text: ["2.0", text]}, index=["a", text])
    for strong in ("", text):
        read = Read(as_html("t", table(frame, strong), {}))
        assert [read.tags.count(tag) for tag in ("tr", "th", "td")] == [3, 5, 4]
        assert not {"a", "img", "script", "em", "h1", "h2", "code"} & set(read.tags)
        shown = seen(text).strip()
        assert re.sub(" +", " ", read.text.replace("↵\n", "↵")).count(shown) >= 4


@pytest.mark.parametrize("text", [*HOSTILE, "```\n</details><script>\n````", "", "\n\n  first line is empty", "\tx"])
def test_a_quoted_text_is_whole_and_inert(text: str):
    heading = "# t\n\nlead\n\n## Answers\n\n### dolly\n\n#### Prompt 1, first"
    page = f"{heading}\n\n{quoted(text)}\n\nreference\n\n{quoted(text)}\n"
    html = as_html("t", page, {})
    read = Read(html.partition("<body>")[2])
    assert read.tags == ["h1", "p", "h2", "details", "summary", "h4", "div", "div", "div", "b", "div"]
    whole = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\ufffd", text.replace("\r\n", "\n"))
    assert read.text.count(whole) >= 2
    assert '<div class="answer reference"><b>reference</b>' in html


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_as_code_is_inert(text: str):
    read = Read(PARSER.render(f"of {code(text)} and {code(text)}\n"))
    assert read.tags == ["p", "code", "code"]
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", "\ufffd", re.sub(r"\s+", " ", text))
    assert [part.strip() for part in read.text.strip().split(" and ", 1)] == [f"of {shown.strip()}", shown.strip()] or (
        " and " in text.replace("\n", " ")
    )


def test_a_long_text_is_cut():
    assert quoted("x" * (SHOWN_CHARACTERS + 1)) == f"```\n{'x' * SHOWN_CHARACTERS} …\n```"


def test_figures_and_harmless_marks_stay_readable():
    sentence = "minillm is above rouge_l-2 (+14.2 [+10.1, +18.3]), p < 0.001; * marks a & b at 5 %."
    assert escaped(sentence) == sentence
    assert escaped(Markdown("**x**")) == "**x**"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://mlflow/#/runs?x=[1]&y=2", "http://mlflow/#/runs?x=[1]&y=2"),
        ("plots/length-my set (2).png", "plots/length-my%20set%20%282%29.png"),
        ("javascript:alert(1)", ""),
        ("data:text/html,x", ""),
        ("//evil/", ""),
        ("http://[", ""),
        ("http://x/<script>) [y](z", "http://x/%3Cscript%3E%29%20[y]%28z"),
    ],
)
def test_links_lead_to_web_addresses_and_files_beside_the_page(url: str, target: str):
    assert address(url) == target


SECRET = "pä|<ss&*wo_\"rd'_9"


@pytest.mark.parametrize("secret", [SECRET, "x[y](z)_*_long", "under_scored`secret", "plain-secret-word"])
def test_a_known_secret_goes_in_every_place(monkeypatch: pytest.MonkeyPatch, tmp_path, secret: str):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
    page = {
        "title": f"run {secret} x",
        "sentences": [f"The best is {secret}.", f"({secret})"],
        "method": secret,
        "base": "b",
        "seeds": [1],
        "measure": "Rouge-L",
        "baseline": secret,
        "changes": pd.DataFrame({"changes": [f"a={secret}"]}, index=[secret]),
        "scores": pd.DataFrame({f"on {secret} x": ["1.0"]}, index=[secret]),
        "differences": pd.DataFrame(),
        "doubt_words": "",
        "measures": pd.DataFrame(),
        "by_seed": pd.DataFrame(),
        "curves": ["loss"],
    }
    figure = Figure(figsize=(2, 2))
    figure.add_subplot().set_xlabel(f"of {secret}")
    write_page("study", page, {"loss": (f"Loss of {secret}", figure)}, tmp_path, [("1", f"of {secret}")])
    plain = re.sub(r"\W", "", secret)
    for name in ("study.md", "study.html"):
        written = (tmp_path / name).read_text(encoding="utf-8")
        assert written.replace("\\*", "*").count(MASK) >= 8
        assert plain not in re.sub(r"\W|amp;|lt;|quot;|#3[49];", "", written)
    for text in (escaped(secret), quoted(f"a {secret} b"), address(f"http://h/{secret}")):
        assert plain not in re.sub(r"\W|%..", "", text)


def test_figures_stand_where_their_images_do():
    drawn = {f"plots/{name}.png": (f"{name} <1>", f"<svg>{name}</svg>") for name in "abc"}
    shown = images({name: (f"{name} <1>", Figure()) for name in "abc"})
    html = as_html("t", f"# t\n\nlead\n\n{shown['a']}\n\n{shown['b']}\n{shown['c']}\n\n![z](plots/z.png)\n", drawn)
    body = html.partition("<body>")[2]
    assert body.count("<figure") == 3
    assert '<figure class="alone" role="img" aria-label="a &lt;1&gt;">' in body
    grid = body.partition('<div class="figures">')[2].partition("</div>")[0]
    assert [f"<svg>{name}</svg>" in grid for name in "abc"] == [False, True, True]
    assert "<img" not in body


def test_tiles_stand_below_the_lead():
    html = as_html("a & b", "# t\n\n**lead**\n\nmore\n", {}, [("64.7", "of <x>")])
    assert "<title>a &amp; b</title>" in html
    assert html.index("lead") < html.index("<b>64.7</b><span>of &lt;x&gt;</span>") < html.index("more")
    assert '<div class="tiles">' not in as_html("t", "# t\n\nlead\n", {})


def test_rows_have_headings_and_intervals_room_to_break():
    frame = pd.DataFrame({"score": ["1.0 [0.5, 1.5]", "2.0 *"], "why": ["a [b]", "c\nd"]}, index=["kd", "minillm"])
    html = as_html("t", table(frame, "minillm", ["why"]), {})
    assert "<th>kd</th>" in html
    assert "<th><strong>minillm</strong></th>" in html
    assert '<td>1.0<span class="gap"> </span>[0.5, 1.5]</td>' in html
    assert "<td><strong>2.0 *</strong></td>" in html
    assert '<td class="words">a [b]</td>' in html
    assert '<td class="words"><strong>c↵\nd</strong></td>' in html
    assert '<th class="words">why</th>' in html
