"""Serves a blinded reading: the page, its images, and a place to put answers. Never the key."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from verisim.errors import VerisimError
from verisim.web.answers import AnswerBook, Conflict, check_answer, reader_name
from verisim.web.pages import page, policy
from verisim.web.study import Study

LOCAL = ("127.0.0.1", "localhost", "::1")
LONGEST_BODY = 4096  # bytes of an answer
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


def make_app(study: Study, host: str = "127.0.0.1") -> Starlette:
    """The application; on a local address only requests to a local name are answered (no DNS rebinding)."""
    book, text = AnswerBook(study), page(study, served=True)
    book.of("")  # an unreadable answer file is found before the first reader comes

    async def index(request: Request) -> Response:
        return HTMLResponse(text, headers={**HEADERS, "Content-Security-Policy": policy(True)})

    async def image(request: Request) -> Response:
        path = study.images.get(request.path_params["name"])
        if path is None:
            return _problem(404, "There is no such image.")
        return FileResponse(
            path, media_type="image/png", headers={**HEADERS, "Cache-Control": "max-age=3600"}
        )

    async def known(request: Request) -> Response:
        def load() -> Response:
            name = reader_name(request.query_params.get("reader"))
            return JSONResponse({"reader": name, "answers": book.of(name)}, headers=HEADERS)

        return await _answered(load)

    async def add(request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return _problem(415, "Send an answer as application/json.")  # what no foreign page can send
        raw = await _body(request)
        if raw is None:
            return _problem(400, f"An answer is a JSON object of at most {LONGEST_BODY} bytes.")

        def store() -> Response:
            answer = check_answer(study, {**raw, "changes": 0}, "answer")
            state = book.add(answer, replace=raw.get("replace") is True)
            return JSONResponse({"state": state}, 201 if state == "stored" else 200, headers=HEADERS)

        return await _answered(store)

    routes = [
        Route("/", index),
        Route("/images/{name}", image),
        Route("/answers", known, methods=["GET"]),
        Route("/answers", add, methods=["POST"]),
    ]
    hosts = list(LOCAL) if host in LOCAL else ["*"]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])


async def _answered(work: Callable[[], Response]) -> Response:
    """work() in a thread; what went wrong as one sentence."""
    try:
        return await run_in_threadpool(work)
    except Conflict as e:
        return _problem(409, str(e))
    except VerisimError as e:
        return _problem(400, str(e))


async def _body(request: Request) -> dict[str, Any] | None:
    """The request's JSON object, or None if it is something else or too long."""
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > LONGEST_BODY:
            return None
    try:
        data = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _problem(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status, headers=HEADERS)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; VerisimError for a port that is taken, not allowed or out of range."""
    if not 0 <= port <= 65535:
        raise VerisimError(f"--port is {port}; it must be from 1 to 65535, or 0 for any free one.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise VerisimError(f"Port {port} of {host} is in use. Choose another: --port {port + 1}.") from e
        raise VerisimError(
            f"Cannot listen on {host}, port {port}: {e.strerror or e}. Choose another one."
        ) from e
    return bound


def serve(
    study: Study, host: str = "127.0.0.1", port: int = 8000, say: Callable[[str], None] = print
) -> None:
    """Serve until Ctrl-C. Only this machine can connect unless `host` says otherwise."""
    import uvicorn

    with listen(host, port) as bound:
        app = make_app(study, host)
        bound.listen(128)  # whoever opens the page at once waits instead of being refused
        address = f"http://{'127.0.0.1' if host in LOCAL else host}:{bound.getsockname()[1]}/"
        say(
            f"Reader study '{study.title}': open {address} in a browser. Stop with Ctrl-C; no answer is lost."
        )
        if host not in LOCAL:
            say(
                f"Others in the network can open it too, unencrypted and without a password: they see the images "
                f"and can answer under any name. Serve on 127.0.0.1 unless you trust everybody on {host}."
            )
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[bound])
