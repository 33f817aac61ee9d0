"""The page that annotators see, which does not reveal which method wrote which answer.

Every choice is a form, and the reply means that it is on disk. Templates escape the texts of models, and the browser is
told to run no script but the page's own. Only requests from this machine and forms of this page are accepted.
"""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import StringConstraints

from minillm.annotation.session import AnnotationSession, Preferred

HERE = Path(__file__).parent
NAME = r"^\w[\w .'-]{0,39}$"
"""Names that an annotator may have: nothing that has a meaning in an address or a spreadsheet."""
NAME_WORDS = (
    "A name begins with a letter or digit; letters, digits, spaces, dots, hyphens and apostrophes may follow, "
    "40 characters at most."
)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def visible(text: str) -> str:
    """Replace control characters, which models do write."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)


PAGES = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
PAGES.filters["visible"] = visible
TEMPLATES = Jinja2Templates(env=PAGES)
ROUTER = APIRouter()


def make_app(session: AnnotationSession) -> FastAPI:
    """Make the application that serves a session."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.session = session
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.middleware("http")(_with_headers)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.include_router(ROUTER)
    return app


async def _with_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


def _session(request: Request) -> AnnotationSession:
    return request.app.state.session


Shown = Annotated[AnnotationSession, Depends(_session)]
Annotator = Annotated[str, StringConstraints(pattern=NAME)]


def _number(session: Shown, number: int) -> int:
    if not 1 <= number <= len(session.pairs):
        raise HTTPException(404, f"there are pairs 1 to {len(session.pairs)}")
    return number


def _from_this_page(request: Request) -> None:
    """Refuse a form that another site made the browser send."""
    if request.headers.get("origin") != f"http://{request.headers['host']}":
        raise HTTPException(403, "this form was not sent by the page itself")


Number = Annotated[int, Depends(_number)]
FROM_THIS_PAGE = [Depends(_from_this_page)]


@ROUTER.get("/")
def welcome(request: Request, session: Shown) -> HTMLResponse:
    """Ask for a name, and list the annotators who have begun."""
    return _welcome(request, session)


@ROUTER.post("/", dependencies=FROM_THIS_PAGE)
def begin(request: Request, session: Shown, name: Annotated[str, Form()]) -> Response:
    """Continue where the annotator of this name stopped."""
    name = " ".join(name.split())
    if not re.fullmatch(NAME, name):
        return _welcome(request, session, name, NAME_WORDS)
    known = (annotator for annotator in session.judged() if annotator.casefold() == name.casefold())
    return _to_next(session, next(known, name))


@ROUTER.get("/annotators/{annotator}")
def resume(session: Shown, annotator: Annotator) -> RedirectResponse:
    """Go to the first pair without a choice."""
    return _to_next(session, annotator)


@ROUTER.get("/annotators/{annotator}/pairs/{number}")
def show(request: Request, session: Shown, annotator: Annotator, number: Number) -> HTMLResponse:
    """Show one pair, with the earlier choice if there is one."""
    judged = session.judged_by(annotator)
    facts = {
        "annotator": annotator,
        "pair": session.pairs[number - 1],
        "answers": session.texts(annotator, number),
        "choice": judged.get(number),
        "number": number,
        "judged": len(judged),
        "total": len(session.pairs),
    }
    return TEMPLATES.TemplateResponse(request, "pair.html.jinja", facts)


@ROUTER.post("/annotators/{annotator}/pairs/{number}", dependencies=FROM_THIS_PAGE)
def choose(
    session: Shown, annotator: Annotator, number: Number, preferred: Annotated[Preferred, Form()]
) -> RedirectResponse:
    """Keep a choice, then show the next pair."""
    session.choose(annotator, number, preferred)
    return _to_next(session, annotator, after=number)


@ROUTER.get("/annotators/{annotator}/done")
def done(request: Request, session: Shown, annotator: Annotator) -> Response:
    """Say that all pairs have a choice, or go to one that has none."""
    if session.next_open(annotator) is not None:
        return _to_next(session, annotator)
    facts = {"annotator": annotator, "total": len(session.pairs)}
    return TEMPLATES.TemplateResponse(request, "done.html.jinja", facts)


def _welcome(request: Request, session: AnnotationSession, name: str = "", problem: str = "") -> HTMLResponse:
    counts = {annotator: len(judged) for annotator, judged in session.judged().items()}
    facts = {"annotators": counts, "total": len(session.pairs), "name": name, "problem": problem}
    return TEMPLATES.TemplateResponse(request, "welcome.html.jinja", facts, status_code=422 if problem else 200)


def _to_next(session: AnnotationSession, annotator: str, after: int = 0) -> RedirectResponse:
    number = session.next_open(annotator, after)
    page = "done" if number is None else f"pairs/{number}"
    return RedirectResponse(f"/annotators/{annotator}/{page}", status_code=303)
