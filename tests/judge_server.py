"""Endpoint on loopback that speaks OpenAI's chat completions and can fail in every way that real ones do."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

KEY = "sk-a-secret-that-must-stand-nowhere"
PATH = "/v1/chat/completions"
TOKENS = (100, 9)
"""Prompt and completion tokens that the server counts for every answer."""

Reply = Callable[["Handler", dict[str, Any]], None]


class Endpoint(ThreadingHTTPServer):
    """Server that rates every text by the number at its end, unless told otherwise."""

    daemon_threads = True

    def __init__(self, handler: type["Handler"] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.lock = threading.Lock()
        self.planned: list[Reply] = []
        """Replies to the next requests; later requests get ratings."""
        self.rate: Callable[[str, str], str] = rate_by_number
        self.structured = True
        self.limit_name = "max_tokens"
        self.requests: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()
        """Number of complete answers to each message: what a provider would charge for."""
        self.under_way = 0
        self.most_at_once = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def endpoint(self) -> Endpoint:
        assert isinstance(self.server, Endpoint)
        return self.server

    def do_POST(self) -> None:
        server = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(body)
            server.under_way += 1
            server.most_at_once = max(server.most_at_once, server.under_way)
            planned = server.planned.pop(0) if server.planned else None
        try:
            self.reply(body, planned)
        except ConnectionError:
            pass  # the client gave up
        finally:
            with server.lock:
                server.under_way -= 1

    def reply(self, body: dict[str, Any], planned: Reply | None) -> None:
        if self.path != PATH:
            self.send(404, {"error": {"message": "no such page"}})
        elif self.headers["Authorization"] != f"Bearer {KEY}":
            self.send(401, {"error": {"message": f"{self.headers['Authorization']} is no key"}})
        elif planned is not None:
            planned(self, body)
        elif not self.endpoint.structured and "response_format" in body:
            self.send(400, {"error": {"message": "response_format is not supported"}})
        elif self.endpoint.limit_name not in body:
            self.send(400, {"error": {"message": f"use {self.endpoint.limit_name}"}})
        else:
            self.answer(body, self.endpoint.rate(*shown(body)))

    def answer(self, body: dict[str, Any], content: str | None) -> None:
        self.send(200, completion(body, content))
        with self.endpoint.lock:
            self.endpoint.answered[body["messages"][0]["content"]] += 1

    def send(self, status: int, value: object, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object, **_: object) -> None:
        pass


def completion(body: dict[str, Any], content: str | None) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    usage = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), (*TOKENS, sum(TOKENS)), strict=True))
    about = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"] + "-exactly"}
    return {**about, "choices": [choice], "usage": usage}


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Return the two answers in a message, in its order."""
    text = body["messages"][0]["content"]
    pattern = r"\[The Start of Assistant {0}'s Response\]\n(.*)\n\[The End of Assistant {0}'s Response\]"
    first, second = (re.search(pattern.format(number), text, re.DOTALL) for number in (1, 2))
    assert first is not None
    assert second is not None
    return first[1], second[1]


def rate_by_number(first: str, second: str) -> str:
    return ratings(int(first.split()[-1]), int(second.split()[-1]))


def ratings(first: object, second: object) -> str:
    return json.dumps({"assistant_1": first, "assistant_2": second})


def says(content: str | None) -> Reply:
    """Return a reply with the given content, which is charged for like any other."""
    return lambda handler, body: handler.answer(body, content)


def fails(status: int, **headers: str) -> Reply:
    return lambda handler, _: handler.send(status, {"error": {"message": f"status {status}", "code": "x"}}, **headers)


def waits(seconds: float) -> Reply:
    def reply(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        handler.answer(body, ratings(10, 10))

    return reply


def breaks_off(handler: Handler, body: dict[str, Any]) -> None:
    """Cut the connection in the middle of an answer whose length was announced."""
    data = json.dumps(completion(body, ratings(1, 1))).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def breaks_off_unannounced(handler: Handler, body: dict[str, Any]) -> None:
    """Cut the connection in the middle of an answer that ends with the connection."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Connection", "close")
    handler.end_headers()
    data = json.dumps(completion(body, ratings(1, 1))).encode()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


AnyEndpoint = TypeVar("AnyEndpoint", bound=Endpoint)


@contextmanager
def serving(server: AnyEndpoint) -> Iterator[AnyEndpoint]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
