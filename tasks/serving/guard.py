"""Guard before an app that we serve: it decides which hosts, pages and people the app answers.

Any page that a browser shows can send requests from its user's machine. So the guard refuses requests under another
host's name (DNS rebinding), requests from a page of another origin and, if the app does not ask itself, requests
without the login.
"""

import base64
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.environment.credentials import PROOF_PATH, proof
from tasks.environment.settings import LOOPBACK


def guarded(app: ASGIApp, address: str, key: str, origins: Sequence[str] = (), login: str | None = None) -> ASGIApp:
    """Put the guard before an app.

    Args:
        app: App to serve.
        address: Address at which it is served, as `http://HOST:PORT`.
        key: Secret that proves whose server it is.
        origins: Further origins of its own pages, such as that of a proxy in front.
        login: `NAME:PASSWORD` to ask for, if the app does not ask itself.
    """
    expected = None if login is None else b"Basic " + base64.b64encode(login.encode())

    def answer(scope: Scope) -> ASGIApp:
        """Choose what answers a request: the app, or the guard itself."""
        headers = Headers(scope=scope)
        if _is_foreign(headers, origins):
            return PlainTextResponse("Pages of other origins are not answered", 403)
        if scope["type"] == "http" and scope["path"] == PROOF_PATH:  # see `credentials.proves`
            challenge = parse_qs(scope["query_string"].decode("latin-1")).get("challenge", [""])[0]
            return PlainTextResponse(proof(key, address, challenge))
        given = headers.get("authorization", "").encode("latin-1")
        if expected is not None and not hmac.compare_digest(given, expected):
            asking = {"WWW-Authenticate": 'Basic realm="MiniLLM", charset="UTF-8"'}
            return PlainTextResponse("Name and password are needed", 401, asking)
        return app

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["type"] == "lifespan" else answer(scope))(scope, receive, send)

    return TrustedHostMiddleware(guard, host_names(address, origins), www_redirect=False)


def host_names(address: str, origins: Sequence[str] = ()) -> list[str]:
    """Return the host names under which a server may be called: its own and those of its origins, without ports."""
    host = str(urlsplit(address).hostname)
    named = [str(urlsplit(origin).hostname) for origin in origins]
    return list(dict.fromkeys([host, *(LOOPBACK if reaches_loopback(host) else ()), *named]))


def reaches_loopback(host: str) -> bool:
    """Return whether a server that listens on a host answers on loopback."""
    if host == "localhost":
        return True
    try:
        place = ipaddress.ip_address(host)
    except ValueError:
        return False
    return place.is_loopback or place.is_unspecified


def _is_foreign(headers: Headers, origins: Sequence[str]) -> bool:
    """Return whether a request comes from a page of another origin than the server's own."""
    origin = headers.get("origin")
    if origin is not None:
        return _netloc(origin) != headers.get("host") and origin not in origins
    # Requests that only read carry no origin. A link that the user follows in a window of its own is allowed.
    followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return headers.get("sec-fetch-site") in ("cross-site", "same-site") and not followed


def _netloc(origin: str) -> str | None:
    """Return host and port of an origin; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
