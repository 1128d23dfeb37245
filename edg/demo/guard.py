"""Checks of every HTTP request to `edg demo`: it comes from the page itself, asks for a route that the page
uses, is of bounded size, and names only files that were uploaded in this run.

It stands before Gradio and knows only what Gradio's page sends: routes, and the form of an event.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import platform
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edg.core.errors import MachineError
from edg.demo.jobs import MAX_BYTES
from edg.demo.uploads import Uploads

T = TypeVar("T")
MAX_FORM = 100_000  # bytes that a request may have beside the file that it uploads; also of an event
BODY_SECONDS = 300  # for a body to arrive
API = "/gradio_api"
FILE = f"{API}/file="
UPLOAD = f"{API}/upload"
PROGRESS = f"{API}/upload_progress"
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/.+"
    rf"|{API}/(startup-events|app_id|info|theme\.css|upload_progress|queue/(data|status)|heartbeat/\w+|file=/.+)",
    re.DOTALL,
)
SENT = re.compile(rf"{API}/(upload|queue/join|run/predict|cancel|reset)")
SESSION = re.compile(r"\w{1,64}", re.ASCII)
POLICY = "; ".join([
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src 'self' 'unsafe-inline'",
    *(f"{what}-src 'self' data: blob:" for what in ("img", "media", "font", "connect", "worker")),
    "object-src 'none'", "base-uri 'self'", "frame-ancestors 'none'",
])  # fmt: skip
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Refused(Exception):
    """A refused request: reason and HTTP status."""

    def __init__(self, reason: str, status: int):
        super().__init__(reason)
        self.status = status


class Guard:
    """ASGI middleware that lets only checked requests through. names: hosts under which the page may be
    asked for; any_address: also by any IP address (no site can call itself by one, so DNS rebinding leads
    nowhere)."""

    def __init__(self, app: ASGIApp, uploads: Uploads, names: frozenset[str], any_address: bool):
        self.app, self.uploads, self.names, self.any_address = app, uploads, names, any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": f"{scope['type']}.close", "code": 1008})

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        answer: Response | None = None
        try:
            self.check_source(scope)
            self.check_route(scope)
            if scope["method"] == "POST":
                if scope["path"] == UPLOAD:
                    answer = JSONResponse([str(await self.upload(scope, receive))])
                else:
                    body = checked_event(await read(scope, receive, MAX_FORM), self.uploads)
                    scope, receive = with_body(scope, receive, body)
            elif scope["path"] == PROGRESS:  # the page waits for it; our upload is there when it is answered
                answer = PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")
            elif not scope["path"].startswith(API):
                scope = {**scope, "query_string": b""}  # no page that somebody saved is opened again
        except Refused as refusal:
            answer = PlainTextResponse(str(refusal), refusal.status)
        except ClientDisconnect:
            return
        await (answer or self.app)(scope, receive, guarded)

    def check_source(self, scope: Scope) -> None:
        """Raise Refused for a request by a page of another site: by its name (Host), or from its
        scripts and forms. A request that changes something names its page, in Origin or
        Sec-Fetch-Site."""
        found: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.lower(), []).append(value.decode("latin-1").lower())
        hosts, origins = found.get(b"host", []), found.get(b"origin", [])
        sites = found.get(b"sec-fetch-site", [])
        if len(hosts) != 1 or not self.is_ours(hosts[0]):
            raise Refused("not a host name of this page", 400)
        if origins and origins != [f"{scope['scheme']}://{hosts[0]}"]:
            raise Refused("from another page", 403)
        if scope["method"] not in ("GET", "HEAD"):
            if not (origins or sites) or sites not in ([], ["same-origin"]):
                raise Refused("from another page", 403)
        elif sites not in ([], ["same-origin"], ["none"]):
            opened = found.get(b"sec-fetch-mode") == ["navigate"]
            if scope["path"] != "/" or not opened or found.get(b"sec-fetch-dest") != ["document"]:
                raise Refused("from another page", 403)

    def is_ours(self, host: str) -> bool:
        """True if a Host header, a name and perhaps a port, is one of this page."""
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:@/\[\]]+)(:\d{1,5})?", host)
        if match is None:
            return False
        name = match[1].strip("[]")
        if name in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address

    def check_route(self, scope: Scope) -> None:
        """Raise Refused for a route that the page does not use, and for files that are not for
        visitors."""
        routes = {"GET": READ, "HEAD": READ, "POST": SENT}.get(scope["method"])
        if routes is None:
            raise Refused("method not allowed", 405)
        path = scope["path"]
        if not routes.fullmatch(path):
            raise Refused("not found", 404)
        if path.startswith(FILE) and not self.uploads.is_shown(path.removeprefix(FILE)):
            raise Refused("not a file of this page", 403)

    async def upload(self, scope: Scope, receive: Receive) -> Path:
        """Receive an upload and keep it. It has a name on the disk only when it is complete, so that
        one that breaks off leaves nothing."""
        length = length_of(scope, MAX_BYTES + MAX_FORM)
        try:
            await run_in_threadpool(self.uploads.reserve, length)
        except MachineError as error:
            raise Refused(error.given, 507) from error
        try:
            return await in_time(self._keep(Request(scope, bounded(receive, length))))
        except OSError as error:
            raise Refused("the upload cannot be stored", 507) from error
        finally:
            self.uploads.release(length)

    async def _keep(self, request: Request) -> Path:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise Refused("expected a form with a file", 400)
        try:
            async with request.form(max_files=1, max_fields=1, max_part_size=MAX_FORM) as form:
                file = form.get("files")
                if not isinstance(file, UploadFile):
                    raise Refused("expected a form with a file", 400)
                if (file.size or 0) > MAX_BYTES:
                    raise Refused(f"at most {MAX_BYTES // 10**6} MB at once", 413)
                return await run_in_threadpool(self.uploads.put, file.filename or "", file.file)
        except (MultiPartException, HTTPException, ValueError, LookupError) as error:
            raise Refused("expected a form with one file", 400) from error


def names_of(*hosts: str) -> tuple[frozenset[str], bool]:
    """(names, any_address) of a `Guard` for a demo that listens at `hosts[0]`, under all of these names."""
    names = {"localhost", *(host.lower() for host in hosts if host)}
    if hosts[0].startswith("127."):
        return frozenset({*names, "127.0.0.1"}), False
    node = platform.node().lower()
    return frozenset({*names, *([node, f"{node.partition('.')[0]}.local"] if node else [])}), True


def length_of(scope: Scope, most: int) -> int:
    """Length of a body by its header, in bytes. Raises Refused for none, several, and more than `most`."""
    lengths = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    if len(lengths) != 1 or not re.fullmatch(rb"[0-9]{1,12}", lengths[0]) or int(lengths[0]) > most:
        raise Refused(
            f"at most {MAX_BYTES // 10**6} MB per upload, {MAX_FORM // 1000} kB besides the file", 413
        )
    return int(lengths[0])


async def read(scope: Scope, receive: Receive, most: int) -> bytes:
    """A request's body. Raises Refused, ClientDisconnect."""
    request = Request(scope, bounded(receive, length_of(scope, most)))
    return await in_time(request.body())


async def in_time(work: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(work, BODY_SECONDS)
    except asyncio.TimeoutError as error:
        raise Refused("the request is too slow", 408) from error


def bounded(receive: Receive, most: int) -> Receive:
    """A `receive` that raises Refused when a body is longer than its header says."""
    left = most

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refused("the body is longer than its header states", 413)
        return message

    return counted


def with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The request with another body."""
    rest = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"content-type", b"transfer-encoding", b"content-encoding")
    ]
    headers = [
        *rest,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return {**scope, "headers": headers}, replay


def checked_event(body: bytes, uploads: Uploads) -> bytes:
    """An event with only the parts that the page's events have: numbers, texts, and files that were
    uploaded in this run. It is written anew, so every reader reads the same. Raises Refused."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused("expected an event as JSON", 400) from error
    if not isinstance(sent, dict):
        raise Refused("expected an event as a JSON object", 400)
    kept: dict[str, Any] = {}
    for name in ("session_hash", "event_id"):
        value = sent.get(name)
        if value is not None and not (isinstance(value, str) and SESSION.fullmatch(value)):
            raise Refused(f"not a {name}", 400)
        kept |= {name: value} if name in sent else {}
    for name in ("fn_index", "trigger_id"):
        if sent.get(name) is not None:
            kept[name] = _index(sent[name], name)
    if "data" in sent:
        data = sent["data"]
        if not isinstance(data, list):
            raise Refused("expected a list as data", 400)
        kept["data"] = [_value(value, uploads) for value in data]
    chosen = sent.get("event_data")
    if isinstance(chosen, dict) and "index" in chosen:  # of a gallery; what else it has nobody reads
        kept["event_data"] = {"index": _index(chosen["index"], "index"), "value": None}
    try:
        return json.dumps(kept, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # Gradio could not send it back
        raise Refused("expected text in Unicode", 400) from error


def _index(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 10**6:
        raise Refused(f"expected {name} as a number from 0", 400)
    return value


def _value(value: Any, uploads: Uploads) -> Any:
    """A number, a text, or the name of an upload without its other fields."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or not uploads.is_upload(path):
        raise Refused("not a file that was uploaded here", 403)
    return {"path": path, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}
