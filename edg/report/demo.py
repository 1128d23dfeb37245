"""The page of `edg demo`, the one room for Gradio: what is typed becomes wishes, moments become the page.

Whoever imports this has set `ENVIRONMENT` first: Gradio reads it while it is imported.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from edg.core.errors import EdgError
from edg.report import stage as html
from edg.report.studio import MAX_BYTES, MAX_PROMPT, MAX_STEPS, SEEDS, Made, Moment, Studio, Wish

HISTORY = 24  # clips that a visitor keeps
WAITING = 8  # visitors in the queue
MAX_KEPT = 2_000_000_000  # bytes of uploads and clips together; more uploads are refused
MAX_FORM = 100_000  # bytes that a request may have beside the file that it uploads
CLEANING = 3600, 86_400  # seconds: every hour, uploads older than a day go
# Of Gradio's own that the page does not use: it would ask others, take further files, or edit the page.
CLOSED = (
    "/file=http",
    "/proxy=",
    "/process_recording",
    "/vibe-",
    "/undo-vibe-",
    "/component_server",
    "/stream/",
)
DIALS = {"motion": 0.7, "hold": 0.85}  # where they stand to begin with
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the machine: nothing is fetched
POLICY = "; ".join([
    "default-src 'self'", "script-src 'self' 'unsafe-inline' 'unsafe-eval'", 
    "style-src 'self' 'unsafe-inline'",
    *(f"{what}-src 'self' data: blob:" for what in ("img", "media", "font", "connect", "worker")),
    "object-src 'none'", "base-uri 'self'", "frame-ancestors 'none'",
])  # fmt: skip
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of events
FIXED = {"interactive": False, "visible": False}  # until there is something
SHELF = {
    "height": "auto",
    "fit_columns": False,
    "allow_preview": False,
    "object_fit": "contain",
    "buttons": [],
}


def server(studio: Studio, host: str, examples: Sequence[tuple[str, str]] = ()) -> uvicorn.Server:
    """What serves the page, ready to `run(sockets=[...])` until a signal. examples: (image, prompt)."""
    quiet = "critical"  # Gradio tells what fails in an event; uvicorn would tell of what the end cuts off
    return uvicorn.Server(
        uvicorn.Config(app(studio, host, examples), log_level=quiet, timeout_graceful_shutdown=1)
    )


def app(studio: Studio, host: str, examples: Sequence[tuple[str, str]] = ()) -> FastAPI:
    """The page with its guards: other sites that name this machine theirs, and whatever leads elsewhere."""
    hosts = ["127.0.0.1", "localhost"] if host.startswith("127.") else ["*"]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard, folder=studio.folder)]
    return gr.mount_gradio_app(
        FastAPI(middleware=guards, docs_url=None, redoc_url=None, openapi_url=None),
        page(studio, examples),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=html.CSS,
    )


def theme() -> gr.themes.Base:
    sans, mono = FONTS
    grey, light = "*neutral_600", "*neutral_400"
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono).set(
        body_text_color_subdued=grey, body_text_color_subdued_dark=light,
        block_info_text_color=grey, block_info_text_color_dark=light,
        block_label_text_color=grey, block_label_text_color_dark=light,
    )  # fmt: skip


class Guard:
    """Every answer forbids the browser to ask anybody else; nor does the server for it. What is sent is
    bounded, each request and all that is kept in `folder`."""

    def __init__(self, app: Any, folder: Path):
        self.app, self.folder = app, folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        if any(part in scope.get("path", "") for part in CLOSED):
            scope = {**scope, "path": "/nothing"}
        if refusal := self.refusal(scope):
            await PlainTextResponse(*refusal)(scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)

    def refusal(self, scope: Any) -> tuple[str, int] | None:
        """Why a request is refused, and the status."""
        if scope.get("method") != "POST":
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit() or int(length) > MAX_BYTES + MAX_FORM:
            return f"at most {MAX_BYTES // 10**6} MB at once", 413
        if scope["path"].rstrip("/").endswith("/upload") and kept(self.folder) >= MAX_KEPT:
            return "no room for more uploads", 507
        return None


def kept(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def page(studio: Studio, examples: Sequence[tuple[str, str]]) -> gr.Blocks:
    """What is on the page and what its buttons do."""
    visit = Visit(studio, examples)
    small = ["small"] if studio.small else []

    def forget(made: list[Made]) -> None:  # no method: Gradio copies it, with the networks that hang on it
        for each in made:
            studio.forget(each)

    with gr.Blocks(
        title="edg: still images that move", analytics_enabled=False, delete_cache=CLEANING
    ) as blocks:
        gr.Markdown("# edg: still images that move")
        gr.Markdown(f"An image and a prompt become a short clip. Model: `{studio.name}`. {studio.about}")
        made = gr.State([], delete_callback=forget)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                inputs = _inputs(studio, *(examples[0] if examples else (None, "")), small)
            with gr.Column(scale=3, min_width=300):
                stage = gr.HTML(html.hint("The clip appears here."), elem_id="stage")
                words = gr.HTML(elem_id="words")
                with gr.Row():
                    go = gr.Button("Animate", variant="primary", elem_id="go")
                    halt = gr.Button("Stop", variant="stop", interactive=False, elem_id="halt")
                saved = gr.File(label="Clip and record", file_count="multiple", elem_id="files", **FIXED)
        history = gr.Gallery(
            label="History: a click brings a clip back with its settings",
            elem_id="history",
            elem_classes=[*small, "shelf"],
            columns=6,
            **SHELF,
            **FIXED,
        )
        shelf = gr.Gallery(
            [*examples],
            label="Images to begin with",
            elem_id="examples",
            elem_classes=[*small, "shelf"],
            columns=8,
            interactive=False,
            **SHELF,
        )
        image, prompt, *_ = inputs
        shown, buttons = [stage, words, saved], [go, halt]
        image.upload(visit.look, image, [image, words], preprocess=False, **QUIET)
        shelf.select(visit.example, None, [image, prompt], **QUIET)
        history.select(visit.again, made, [*shown, *inputs], **QUIET)
        go.click(visit.enter, None, [stage, words, *buttons], queue=False, **QUIET).then(
            visit.make, [made, *inputs], [*shown, history, made], concurrency_limit=1, **QUIET
        ).then(visit.leave, None, buttons, queue=False, **QUIET)
        halt.click(visit.stop, None, halt, queue=False, **QUIET)
        blocks.unload(visit.gone)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)


def _inputs(studio: Studio, image: str | None, prompt: str, classes: list[str]) -> list[Any]:
    """image, prompt, seed, steps, compare and a slider for each dial."""
    picture = gr.Image(
        image,
        label="Image",
        type="filepath",  # as it was uploaded
        image_mode=None,
        sources=["upload", "clipboard"],
        height=240,
        buttons=[],
        elem_id="image",
        elem_classes=classes,
    )
    text = gr.Textbox(
        prompt, label="Prompt", max_length=MAX_PROMPT, elem_id="prompt", placeholder="what moves, and how"
    )
    dials = [
        gr.Slider(0, 1, DIALS[word], step=0.05, label=word.capitalize(), info=told, elem_id=word)
        for word, told in studio.dials.items()
    ]
    with gr.Row():
        steps = gr.Slider(1, MAX_STEPS, studio.steps, step=1, label="Steps", min_width=120, elem_id="steps")
        seed = gr.Number(
            123, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, min_width=120, elem_id="seed"
        )
    compare = gr.Checkbox(
        False, label="Beside the base model", visible=len(studio.makers) > 1, elem_id="compare"
    )
    return [picture, text, seed, steps, compare, *dials]


class Visit:
    """What the page's events do. A visitor is known by the session of the browser's tab."""

    def __init__(self, studio: Studio, examples: Sequence[tuple[str, str]]):
        self.studio, self.examples = studio, examples
        self.stops: dict[str, threading.Event] = {}

    def look(self, image: Mapping[str, Any]):
        """An upload, as the browser names it: an image, or the reason why it is none."""
        try:
            self.studio.check_image(Path(image["path"]))
        except EdgError as error:
            return None, html.words(Moment("", error=str(error)))
        return gr.skip(), ""

    def example(self, event: gr.SelectData):
        return self.examples[event.index]

    def enter(self, request: gr.Request):
        """The button: in the queue, and from now on it can be stopped."""
        self.stops[request.session_hash] = threading.Event()
        waiting = html.words(Moment("waiting for its turn"))
        busy = gr.Button(interactive=False), gr.Button(interactive=True)
        return html.hint("The first preview comes after a few steps."), waiting, *busy

    def make(self, request: gr.Request, made: list[Made], *inputs: Any) -> Iterator[Any]:
        """(stage, words, files, history, clips) again and again until the clip is there."""
        image, prompt, seed, steps, compare, *turned = inputs
        if image is None:
            return (
                yield html.hint(""), html.words(Moment("", error="put in an image first")), *[gr.skip()] * 3
            )
        dials = dict(zip(self.studio.dials, turned, strict=True))
        wish = Wish(Path(image), prompt or "", int(seed or 0), int(steps), dials, bool(compare))
        stop = self.stops.setdefault(request.session_hash, threading.Event())
        for moment in self.studio.make(wish, stop):
            stage = html.pictures(moment) if moment.frames or moment.made else gr.skip()
            more = [gr.skip()] * 3
            if moment.made:
                for old in made[HISTORY - 1 :]:
                    self.studio.forget(old)
                made = [moment.made, *made[: HISTORY - 1]]
                more = [_files(moment.made), _gallery(made), made]
            yield stage, html.words(moment, wish), *more

    def leave(self, request: gr.Request):
        self.stops.pop(request.session_hash, None)
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def stop(self, request: gr.Request):
        self.gone(request)
        return gr.Button(interactive=False)

    def gone(self, request: gr.Request) -> None:
        """The tab was closed, or stop was pressed."""
        if stop := self.stops.get(request.session_hash):
            stop.set()

    def again(self, made: list[Made], event: gr.SelectData):
        """A clip of the history with its settings: (stage, words, files, inputs)."""
        chosen = made[event.index]
        wish = chosen.wish
        settings = [str(wish.image), wish.prompt, wish.seed, wish.steps, wish.compare, *wish.dials.values()]
        return html.show(chosen), html.words(Moment("", made=chosen), wish), _files(chosen), *settings


def _files(made: Made) -> gr.File:
    return gr.File(value=[str(path) for path in made.files], visible=True)


def _gallery(made: Sequence[Made]) -> gr.Gallery:
    return gr.Gallery(value=[(str(each.thumb), html.label(each.wish)) for each in made], visible=True)
