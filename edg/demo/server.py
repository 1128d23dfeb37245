"""The page of `edg demo` in Gradio.

Gradio reads environment variables while it is imported: set `process.gradio_environment` first. Every request
passes guard.py before it reaches Gradio.
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

from edg.core.errors import EdgError, UsageError, require
from edg.demo import view
from edg.demo.guard import Guard, names_of
from edg.demo.jobs import (
    MAX_BYTES,
    MAX_PROMPT,
    SEEDS,
    DemoBackend,
    DemoModel,
    DemoRequest,
    DemoResult,
    Update,
)

HISTORY = 24  # clips that a visitor keeps
WAITING = 64  # events in the queue
VISITS = 1000  # tabs with a state
CONNECTIONS = 600  # at once; a tab has up to six
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # the visitor's own: nothing is fetched
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of events
FIXED = {"interactive": False, "visible": False}  # until there is something
SHOW_STATUS = """() => {
    if (innerWidth <= 640) document.querySelector("#status").scrollIntoView({behavior: "smooth"})
}"""  # on a phone the clip appears below the fold
SHELF = {
    "height": "auto",
    "fit_columns": False,
    "allow_preview": False,
    "object_fit": "contain",
    "buttons": [],
}


def server(backend: DemoBackend, host: str, name: str = "") -> uvicorn.Server:
    """A server of the page, ready to `run(sockets=[...])` until a signal. host: the address it listens on;
    name: another name of it."""
    quiet = "critical"  # Gradio logs what fails in an event; uvicorn would log what the end cuts off
    config = uvicorn.Config(
        app(backend, host, name),
        loop="asyncio",  # leaves the wakeup descriptor of signals to process.py
        ws="none",
        log_level=quiet,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def app(backend: DemoBackend, host: str, name: str = "") -> FastAPI:
    """The page behind its guard."""
    names, any_address = names_of(host, name)
    guard = Middleware(Guard, uploads=backend.uploads, names=names, any_address=any_address)
    return gr.mount_gradio_app(
        FastAPI(middleware=[guard], docs_url=None, redoc_url=None, openapi_url=None),
        page(backend, _uploaded_examples(backend)),
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=view.CSS,
    )


def _uploaded_examples(backend: DemoBackend) -> list[tuple[str, str]]:
    """The examples, with their images as uploads of this run."""
    found = []
    for image, prompt in backend.model.examples:
        with open(image, "rb") as file:
            found.append((str(backend.uploads.put(Path(image).name, file, lasting=True)), prompt))
    return found


def theme() -> gr.themes.Base:
    sans, mono = FONTS
    grey, light = "*neutral_600", "*neutral_400"
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono).set(
        body_text_color_subdued=grey, body_text_color_subdued_dark=light,
        block_info_text_color=grey, block_info_text_color_dark=light,
        block_label_text_color=grey, block_label_text_color_dark=light,
    )  # fmt: skip


def page(backend: DemoBackend, examples: Sequence[tuple[str, str]]) -> gr.Blocks:
    """The page with its events."""
    events, model = Events(backend, examples), backend.model
    small = ["small"] if model.small else []

    def remove(
        results: list[DemoResult],
    ) -> None:  # a method would be copied with the networks
        for result in results:
            backend.remove(result)

    with gr.Blocks(title="edg: still images that move", analytics_enabled=False) as blocks:
        gr.Markdown("# edg: still images that move")
        gr.Markdown(f"Makes a short clip from an image and a prompt. Model: `{model.name}`. {model.about}")
        results = gr.State([], delete_callback=remove)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                image, prompt = _picture_and_prompt(*(examples[0] if examples else (None, "")), small)
                with gr.Row():  # above the fold of a phone
                    go = gr.Button("Animate", variant="primary", min_width=120, elem_id="go")
                    halt = gr.Button("Stop", variant="stop", interactive=False, min_width=120, elem_id="halt")
            with gr.Column(scale=3, min_width=300):
                status = gr.HTML(elem_id="status")
                stage = gr.HTML(view.hint_html("The clip appears here."), elem_id="stage")
                saved = gr.File(label="Clip and record", file_count="multiple", elem_id="files", **FIXED)
        inputs = [image, prompt, *_settings(model)]
        history = gr.Gallery(
            label="History: click a clip to show it again with its settings",
            elem_id="history",
            elem_classes=[*small, "shelf"],
            columns=6,
            **SHELF,
            **FIXED,
        )
        shelf = gr.Gallery(
            [*examples],
            label="Example images",
            elem_id="examples",
            elem_classes=[*small, "shelf"],
            columns=8,
            interactive=False,
            **SHELF,
        )
        shown, buttons = [stage, status, saved], [go, halt]
        image.upload(events.check, image, [image, status], preprocess=False, **QUIET)
        shelf.select(events.example, None, [image, prompt, status], **QUIET)
        history.select(events.restore, results, [*shown, *inputs], **QUIET)
        go.click(events.enqueue, None, [stage, status, *buttons], queue=False, **QUIET).then(
            events.generate,
            [results, *inputs],
            [*shown, history, results],
            concurrency_limit=1,
            preprocess=False,  # Gradio would open the image with any decoder
            **QUIET,
        ).then(events.finish, None, buttons, queue=False, **QUIET)
        halt.click(events.stop, None, halt, queue=False, **QUIET)
        blocks.unload(events.cancel)
        image.clear(lambda: "", None, status, **QUIET)
        go.click(None, js=SHOW_STATUS, api_visibility="private")
    # Gradio checks that a file was uploaded only after `launch`, which a mounted page does not call. The
    # guard has checked it; this is a second check.
    blocks.has_launched = True
    blocks.state_session_capacity = VISITS
    return blocks.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)


def _picture_and_prompt(image: str | None, prompt: str, classes: list[str]) -> tuple[Any, Any]:
    picture = gr.Image(
        image,
        label="Image",
        type="filepath",  # as it was uploaded
        image_mode=None,
        sources=["upload", "clipboard"],
        height=220,
        buttons=[],
        elem_id="image",
        elem_classes=classes,
    )
    text = gr.Textbox(
        prompt,
        label="Prompt",
        max_length=MAX_PROMPT,
        elem_id="prompt",
        placeholder="Describe what moves, and how",
    )
    return picture, text


def _settings(model: DemoModel) -> list[Any]:
    """The other fields: seed, compare, and a slider for each setting; what was measured stands behind a
    question mark."""
    with gr.Row():
        sliders = [
            gr.Slider(
                slider.low, slider.high, slider.start, step=slider.step, min_width=240,
                label=slider.label.capitalize(), elem_id=slider.name,
            )
            for slider in model.sliders
        ]  # fmt: skip
    if measured := [f"**{s.label.capitalize()}**: {s.help}" for s in model.sliders if s.help]:
        with gr.Accordion("What the settings do, as measured", open=False, elem_id="measured"):
            gr.Markdown("\n\n".join(measured))
    _, *others = model.animate
    beside = f"Compare with the {' and '.join(others)} model"
    with gr.Row():
        seed = gr.Number(
            123, label="Seed", precision=0, minimum=0, maximum=SEEDS - 1, min_width=120, elem_id="seed"
        )
        compare = gr.Checkbox(False, label=beside, visible=bool(others), elem_id="compare")
    return [seed, compare, *sliders]


class Events:
    """Handlers of the page's events. A visitor is known by the session of the browser's tab."""

    def __init__(self, backend: DemoBackend, examples: Sequence[tuple[str, str]]):
        self.backend, self.examples = backend, examples
        self.stops: dict[str, threading.Event] = {}
        self.asked: dict[str, None] = {}  # visitors who were asked about an empty prompt
        self.labels = {slider.name: slider.label for slider in backend.model.sliders}

    def check(self, image: Mapping[str, Any]):
        """Check an upload: keep the image, or show why it is none."""
        try:
            doubt = self.backend.check_image(Path(image["path"]))
        except EdgError as error:
            return None, view.status_html(Update("", error=str(error)))
        return gr.skip(), view.note_html(doubt)

    def example(self, event: gr.SelectData):
        """Put an example into the fields: (image, prompt, status)."""
        return (*self.examples[event.index], "") if event.index < len(self.examples) else [gr.skip()] * 3

    def enqueue(self, request: gr.Request):
        """Show that the request waits, and let it be stopped."""
        self.new_stop(request)
        waiting = view.status_html(Update("waiting to start"))
        busy = gr.Button(interactive=False), gr.Button(interactive=True)
        return view.hint_html("The first preview appears after a few steps."), waiting, *busy

    def generate(self, request: gr.Request, results: list[DemoResult], *inputs: Any) -> Iterator[Any]:
        """Yield (stage, status, files, history, results) until the clip is finished."""
        try:
            wanted = self.read_request(*inputs)
            self.ask_for_prompt(request, wanted)
        except EdgError as error:
            shown = view.hint_html(""), view.status_html(Update("", error=str(error)))
            return (yield *shown, *[gr.skip()] * 3)
        stop = self.stops.get(request.session_hash) or self.new_stop(request)
        for update in self.backend.generate(wanted, stop):
            stage = view.clips_html(update) if update.frames or update.result else gr.skip()
            more = [gr.skip()] * 3
            if update.result:
                for old in results[HISTORY - 1 :]:
                    self.backend.remove(old)
                results = [update.result, *results[: HISTORY - 1]]
                more = [_files(update.result), self.gallery(results), results]
            yield stage, view.status_html(update, wanted, self.labels), *more

    def read_request(self, image: Any, prompt: Any, seed: Any, compare: Any, *values: Any) -> DemoRequest:
        """The request in the page's fields, as the browser sent them. Raises UsageError."""
        require(isinstance(image, Mapping), "choose an image first")
        try:
            pairs = zip(self.backend.model.sliders, values, strict=True)
            settings = {slider.name: slider.convert(value) for slider, value in pairs}
            number = int(seed or 0)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError("a field is not a number", fix="reload the page") from error
        return DemoRequest(Path(image["path"]), str(prompt or ""), number, settings, bool(compare))

    def ask_for_prompt(self, request: gr.Request, wanted: DemoRequest) -> None:
        """Raise UsageError for an empty prompt, once until there was one: pressed again, the clip is made
        without."""
        session = request.session_hash
        if wanted.prompt.strip():
            self.asked.pop(session, None)
        if wanted.prompt.strip() or session in self.asked:
            return
        while len(self.asked) >= VISITS:
            self.asked.pop(next(iter(self.asked)), None)
        self.asked[session] = None
        raise UsageError(
            "the prompt is empty",
            expected="what moves, and how",
            fix="write it, or press Animate again to go on without",
        )

    def new_stop(self, request: gr.Request) -> threading.Event:
        """Make the flag that stops the visitor's request."""
        while len(self.stops) >= VISITS:  # of tabs that are gone
            self.stops.pop(next(iter(self.stops)), None)
        stop = self.stops[request.session_hash] = threading.Event()
        return stop

    def finish(self, request: gr.Request):
        """Enable the button for the next request."""
        self.stops.pop(request.session_hash, None)
        return gr.Button(interactive=True), gr.Button(interactive=False)

    def stop(self, request: gr.Request):
        """Stop the request at the press of the button."""
        self.cancel(request)
        return gr.Button(interactive=False)

    def cancel(self, request: gr.Request) -> None:
        """Stop the request of a visitor, also of one who closed the tab."""
        if stop := self.stops.get(request.session_hash):
            stop.set()

    def restore(self, results: list[DemoResult], event: gr.SelectData):
        """Show a clip of the history with its settings: (stage, status, files, inputs)."""
        if event.index >= len(results):
            return [gr.skip()] * (7 + len(self.backend.model.sliders))
        result = results[event.index]
        request = result.request
        fields = [str(request.image), request.prompt, request.seed, request.compare]
        status = view.status_html(Update("", result=result), request, self.labels)
        return view.result_html(result), status, _files(result), *fields, *request.settings.values()

    def gallery(self, results: Sequence[DemoResult]) -> gr.Gallery:
        """The history."""
        shown = [(str(one.thumb), view.request_line(one.request, self.labels)) for one in results]
        return gr.Gallery(value=shown, visible=True)


def _files(result: DemoResult) -> gr.File:
    return gr.File(value=[str(path) for path in result.files], visible=True)
