"""Write a page: Markdown with its figures as files beside it, and the same as one HTML file that needs nothing else.

The prose is written once, in the Markdown's template. HTML adds the shell, the tiles below the lead, figures in the
page, row headings, and answers that fold.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.token import Token
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from minillm.durable import write_atomically
from minillm.redaction import without_known_secrets
from minillm.reporting import plots
from minillm.reporting.markdown import LINE_BREAK, TEMPLATES, Markdown, address, escaped, render

Figures = Mapping[str, tuple[str, Figure]]
"""Title and figure, by the name of its file."""
Tiles = Sequence[tuple[str, str]]
"""Large figures with what they say."""

PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")
PARSER.add_render_rule("image", lambda _, tokens, place, *__: escapeHtml(tokens[place].content))
SHELL = Environment(
    loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
FIGURE = Markup(
    '<figure{place} role="img" aria-label="{title}"><figcaption>{title}</figcaption>{svg}</figure>\n'
)  # the SVG is ours, drawn by the stage
ANSWERS = "Answers"
"""Heading of the part whose sections fold, and whose labelled texts stand side by side."""
FULL_WIDTH = {"reference": " reference", "context": " context"}
"""Classes of the boxes that are no method's answer, by their labels."""


def write_page(name: str, page: Mapping[str, Any], figures: Figures, output: Path, tiles: Tiles = ()) -> None:
    """Write NAME.md, NAME.html and plots/.

    Args:
        name: Of the files and of the template.
        page: What the template shows; its `title` is the page's.
        figures: All figures, in any order.
        output: An existing folder.
        tiles: Shown in HTML alone.
    """
    folder = output / "plots"
    folder.mkdir(exist_ok=True)
    drawn = {f"plots/{key}.png": (title, plots.save(of, folder / f"{key}.png")) for key, (title, of) in figures.items()}
    text = render(f"{name}.md", {**page, "images": images(figures), "glance": False})
    write_atomically(output / f"{name}.md", text)
    write_atomically(output / f"{name}.html", as_html(f"{page['title']} – {name}", text, drawn, tiles))


def images(figures: Figures) -> dict[str, Markdown]:
    """Markdown that shows each figure, by the name of its file."""
    return {key: Markdown(f"![{escaped(title)}]({address(f'plots/{key}.png')})") for key, (title, _) in figures.items()}


def as_html(title: str, text: str, drawn: Mapping[str, tuple[str, str]], tiles: Tiles = ()) -> str:
    """Turn a page's Markdown into HTML.

    Args:
        title: Of the browser's window.
        text: Filled by `markdown.render`.
        drawn: Title and SVG of each figure, by the address of its image.
        tiles: Shown below the first paragraph.
    """
    tokens = list(_tables(_folded(list(_figures(PARSER.parse(text), drawn)))))
    lead_end = 1 + next((place for place, token in enumerate(tokens) if token.type == "paragraph_close"), -1)
    lead, body = (
        Markup(PARSER.renderer.render(part, PARSER.options, {})) for part in (tokens[:lead_end], tokens[lead_end:])
    )
    page = SHELL.get_template("page.html.jinja").render(title=title, lead=lead, tiles=tiles, body=body)
    return without_known_secrets(page)


def _figures(tokens: Sequence[Token], drawn: Mapping[str, tuple[str, str]]) -> Iterator[Token]:
    """Put figures in place of paragraphs of images; several of one paragraph stand side by side."""
    at = 0
    while at < len(tokens):
        if tokens[at].type == "paragraph_open" and (found := _images_of(tokens[at + 1], drawn)):
            place = Markup(' class="alone"') if len(found) == 1 else ""
            shown = Markup("").join(FIGURE.format(place=place, title=title, svg=Markup(svg)) for title, svg in found)
            yield _html(shown if len(found) == 1 else Markup('<div class="figures">\n{}</div>\n').format(shown))
            at += 3
        else:
            yield tokens[at]
            at += 1


def _images_of(inline: Token, drawn: Mapping[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """The figures of a paragraph that holds nothing else."""
    parts = [part for part in inline.children or () if part.type != "softbreak"]
    found = [drawn.get(unquote(str(part.attrs.get("src", "")))) for part in parts if part.type == "image"]
    known = [figure for figure in found if figure is not None]
    return known if len(known) == len(parts) else []


def _folded(tokens: Sequence[Token]) -> Iterator[Token]:
    """Fold the sections of the answers, the first one open, and put a label and the text below it into a box."""
    inside, closing = False, {"boxes": False, "section": False}
    sections, at = 0, 0
    while at < len(tokens):
        token, kinds = tokens[at], [of.type for of in tokens[at : at + 4]]
        labelled = inside and kinds[:1] == ["paragraph_open"] and kinds[3:] == ["fence"]
        if closing["boxes"] and not labelled:
            closing["boxes"] = False
            yield _html("</div>\n")
        if closing["section"] and token.type == "heading_open" and token.tag in ("h2", "h3"):
            closing["section"] = False
            yield _html("</details>\n")
        if token.type == "heading_open" and token.tag == "h2":
            inside = tokens[at + 1].content == ANSWERS
        if inside and token.type == "heading_open" and token.tag == "h3":
            yield from (_html(f"<details{'' if sections else ' open'}><summary>"), tokens[at + 1])
            yield _html("</summary>\n")
            closing["section"], sections, at = True, sections + 1, at + 3
        elif labelled:
            if not closing["boxes"]:
                closing["boxes"] = True
                yield _html('<div class="answers">\n')
            kind = FULL_WIDTH.get(tokens[at + 1].content, "")
            yield from (_html(f'<div class="answer{kind}"><b>'), tokens[at + 1])
            yield _html(Markup('</b><div class="text">{}</div></div>\n').format(_content(tokens[at + 3])))
            at += 4
        elif inside and token.type == "fence":
            yield _html(Markup('<div class="asked text">{}</div>\n').format(_content(token)))
            at += 1
        else:
            yield token
            at += 1
    yield from (_html(end) for name, end in (("boxes", "</div>\n"), ("section", "</details>\n")) if closing[name])


def _tables(tokens: Iterator[Token]) -> Iterator[Token]:
    """Let wide tables scroll, make the first column row headings, and tell columns of text from those of figures."""
    column, is_text = 0, False
    for token in tokens:
        if token.type == "table_open":
            yield _html('<div class="scroll">')
        if token.type == "tr_open":
            column = 0
        if token.type in ("td_open", "th_open"):
            is_text = token.attrs.pop("style", "") == "text-align:left"
            if is_text and column:
                token.attrs["class"] = "words"
        if token.type in ("td_open", "td_close") and column == 0:
            token.tag = "th"
        if token.type == "inline" and token.children and token.level > 2:  # of a cell
            token.children = list(_cell(token.children, is_text))
        if token.type in ("td_close", "th_close"):
            column += 1
        yield token
        if token.type == "table_close":
            yield _html("</div>\n")


def _cell(parts: Sequence[Token], is_text: bool) -> Iterator[Token]:
    """A cell's parts; an interval may stand below its figure, and a text's lines below each other."""
    for part in parts:
        figure, bracket, ends = part.content.partition(" [")
        if part.type != "text":
            yield part
        elif is_text:
            yield _text(part.content.replace(LINE_BREAK, f"{LINE_BREAK}\n"))
        elif bracket:
            yield from (_text(figure), Token("html_inline", "", 0, content='<span class="gap"> </span>'))
            yield _text(f"[{ends}")
        else:
            yield part


def _content(fence: Token) -> Markup:
    return escape(fence.content.removesuffix("\n"))


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _html(content: str) -> Token:
    return Token("html_block", "", 0, content=content)
