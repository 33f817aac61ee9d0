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

from minillm.annotation.study import Preferred, Study

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


def make_app(study: Study) -> FastAPI:
    """The application that shows a study."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.study = study
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.middleware("http")(_with_headers)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.include_router(ROUTER)
    return app


async def _with_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


def _study(request: Request) -> Study:
    return request.app.state.study


Shown = Annotated[Study, Depends(_study)]
Annotator = Annotated[str, StringConstraints(pattern=NAME)]


def _number(study: Shown, number: int) -> int:
    if not 1 <= number <= len(study.pairs):
        raise HTTPException(404, f"there are pairs 1 to {len(study.pairs)}")
    return number


def _from_this_page(request: Request) -> None:
    """Refuse a form that another site made the browser send."""
    if request.headers.get("origin") != f"http://{request.headers['host']}":
        raise HTTPException(403, "this form was not sent by the page itself")


Number = Annotated[int, Depends(_number)]
FROM_THIS_PAGE = [Depends(_from_this_page)]


@ROUTER.get("/")
def welcome(request: Request, study: Shown) -> HTMLResponse:
    """Ask for a name, and say who has begun."""
    return _welcome(request, study)


@ROUTER.post("/", dependencies=FROM_THIS_PAGE)
def begin(request: Request, study: Shown, name: Annotated[str, Form()]) -> Response:
    """Go on where the annotator of this name stopped."""
    name = " ".join(name.split())
    if not re.fullmatch(NAME, name):
        return _welcome(request, study, name, NAME_WORDS)
    known = (annotator for annotator in study.judged() if annotator.casefold() == name.casefold())
    return _to_next(study, next(known, name))


@ROUTER.get("/annotators/{annotator}")
def resume(study: Shown, annotator: Annotator) -> RedirectResponse:
    """The first pair without a choice."""
    return _to_next(study, annotator)


@ROUTER.get("/annotators/{annotator}/pairs/{number}")
def show(request: Request, study: Shown, annotator: Annotator, number: Number) -> HTMLResponse:
    """One pair, with the choice made earlier if there is one."""
    judged = study.judged_by(annotator)
    facts = {
        "annotator": annotator,
        "pair": study.pairs[number - 1],
        "answers": study.texts(annotator, number),
        "choice": judged.get(number),
        "number": number,
        "judged": len(judged),
        "total": len(study.pairs),
    }
    return TEMPLATES.TemplateResponse(request, "pair.html.jinja", facts)


@ROUTER.post("/annotators/{annotator}/pairs/{number}", dependencies=FROM_THIS_PAGE)
def choose(
    study: Shown, annotator: Annotator, number: Number, preferred: Annotated[Preferred, Form()]
) -> RedirectResponse:
    """Keep a choice, then show the next pair."""
    study.judge(annotator, number, preferred)
    return _to_next(study, annotator, after=number)


@ROUTER.get("/annotators/{annotator}/done")
def done(request: Request, study: Shown, annotator: Annotator) -> Response:
    """All pairs have a choice."""
    if study.next_open(annotator) is not None:
        return _to_next(study, annotator)
    facts = {"annotator": annotator, "total": len(study.pairs)}
    return TEMPLATES.TemplateResponse(request, "done.html.jinja", facts)


def _welcome(request: Request, study: Study, name: str = "", problem: str = "") -> HTMLResponse:
    counts = {annotator: len(judged) for annotator, judged in study.judged().items()}
    facts = {"annotators": counts, "total": len(study.pairs), "name": name, "problem": problem}
    return TEMPLATES.TemplateResponse(request, "welcome.html.jinja", facts, status_code=422 if problem else 200)


def _to_next(study: Study, annotator: str, after: int = 0) -> RedirectResponse:
    number = study.next_open(annotator, after)
    page = "done" if number is None else f"pairs/{number}"
    return RedirectResponse(f"/annotators/{annotator}/{page}", status_code=303)
