"""The page that annotators see, without a word of which method wrote what.

Every choice is a form, answered when it is on disk. What models wrote is escaped by the templates, and the browser is
told to run no script but the page's own. Only this machine is answered, and only forms of this page are.
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
"""What an annotator may be called: nothing that has a meaning in an address or a spreadsheet."""
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
    """A text whose control characters, which models do write, are replaced."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)


PAGES = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined)
PAGES.filters["visible"] = visible
TEMPLATES = Jinja2Templates(env=PAGES)
ROUTER = APIRouter()


def make_app(session: AnnotationSession) -> FastAPI:
    """The application that shows a session."""
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
    """Ask for a name, and say who has begun."""
    return _welcome(request, session)


@ROUTER.post("/", dependencies=FROM_THIS_PAGE)
def begin(request: Request, session: Shown, name: Annotated[str, Form()]) -> Response:
    """Go on where the annotator of this name stopped."""
    name = " ".join(name.split())
    if not re.fullmatch(NAME, name):
        return _welcome(request, session, name, NAME_WORDS)
    known = (annotator for annotator in session.judged() if annotator.casefold() == name.casefold())
    return _to_next(session, next(known, name))


@ROUTER.get("/annotators/{annotator}")
def resume(session: Shown, annotator: Annotator) -> RedirectResponse:
    """The first pair without a choice."""
    return _to_next(session, annotator)


@ROUTER.get("/annotators/{annotator}/pairs/{number}")
def show(request: Request, session: Shown, annotator: Annotator, number: Number) -> HTMLResponse:
    """One pair, with the choice made earlier if there is one."""
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
    """All pairs have a choice."""
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
