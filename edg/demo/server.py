"""The page of `edg demo`, the one room for Gradio: what is typed becomes wishes, moments become the page.

Whoever imports this has set `environment` first: Gradio reads it while it is imported. What reaches Gradio
has passed `guard.py`.
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

from edg.core.errors import EdgError, UsageError
from edg.demo import view as html
from edg.demo.guard import Guard, names_of
from edg.demo.jobs import MAX_BYTES, MAX_PROMPT, MAX_STEPS, SEEDS, Made, Moment, Studio, Wish

HISTORY = 24  # clips that a visitor keeps
WAITING = 64  # events in the queue
VISITS = 1000  # tabs of which something is kept
CONNECTIONS = 600  # at once; a tab has up to six
DIALS = {"motion": 0.7, "hold": 0.85}  # where they stand to begin with
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # of the machine: nothing is fetched
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of events
FIXED = {"interactive": False, "visible": False}  # until there is something
SHELF = {
    "height": "auto",
    "fit_columns": False,
    "allow_preview": False,
    "object_fit": "contain",
    "buttons": [],
}


def server(
    studio: Studio, host: str, examples: Sequence[tuple[str, str]] = (), name: str = ""
) -> uvicorn.Server:
    """A server of the page, ready to `run(sockets=[...])` until a signal. host: the address that it listens
    on; name: what else it is called; examples: (image, prompt)."""
    quiet = "critical"  # Gradio logs what fails in an event; uvicorn would log what the end cuts off
    config = uvicorn.Config(
        app(studio, host, examples, name),
        loop="asyncio",  # leaves the wakeup descriptor of signals to `edg/cli/demo.py`
        ws="none",
        log_level=quiet,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def app(studio: Studio, host: str, examples: Sequence[tuple[str, str]] = (), name: str = "") -> FastAPI:
    """The page behind its guard."""
    names, any_address = names_of(host, name)
    guard = Middleware(Guard, uploads=studio.uploads, names=names, any_address=any_address)
    return gr.mount_gradio_app(
        FastAPI(middleware=[guard], docs_url=None, redoc_url=None, openapi_url=None),
        page(studio, _kept(studio, examples)),
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


def _kept(studio: Studio, examples: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The examples as uploads of this run."""
    kept = []
    for image, prompt in examples:
        with open(image, "rb") as file:
            kept.append((str(studio.uploads.put(Path(image).name, file, lasting=True)), prompt))
    return kept


def theme() -> gr.themes.Base:
    sans, mono = FONTS
    grey, light = "*neutral_600", "*neutral_400"
    return gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono).set(
        body_text_color_subdued=grey, body_text_color_subdued_dark=light,
        block_info_text_color=grey, block_info_text_color_dark=light,
        block_label_text_color=grey, block_label_text_color_dark=light,
    )  # fmt: skip


def page(studio: Studio, examples: Sequence[tuple[str, str]]) -> gr.Blocks:
    """What is on the page and what its buttons do."""
    visit = Visit(studio, examples)
    small = ["small"] if studio.small else []

    def forget(made: list[Made]) -> None:  # no method: Gradio copies it, with the networks that hang on it
        for each in made:
            studio.forget(each)

    with gr.Blocks(title="edg: still images that move", analytics_enabled=False) as blocks:
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
            visit.make,
            [made, *inputs],
            [*shown, history, made],
            concurrency_limit=1,
            preprocess=False,  # opens the image with whatever decoder it asks for
            **QUIET,
        ).then(visit.leave, None, buttons, queue=False, **QUIET)
        halt.click(visit.stop, None, halt, queue=False, **QUIET)
        blocks.unload(visit.gone)
    # Gradio looks whether a file was uploaded only after `launch`, which a mounted page has no use for. The
    # guard has looked before; this is a second lock on the same door.
    blocks.has_launched = True
    blocks.state_session_capacity = VISITS
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
        return self.examples[event.index] if event.index < len(self.examples) else [gr.skip()] * 2

    def enter(self, request: gr.Request):
        """The button: in the queue, and from now on it can be stopped."""
        self.new_stop(request)
        waiting = html.words(Moment("waiting for its turn"))
        busy = gr.Button(interactive=False), gr.Button(interactive=True)
        return html.hint("The first preview comes after a few steps."), waiting, *busy

    def make(self, request: gr.Request, made: list[Made], *inputs: Any) -> Iterator[Any]:
        """(stage, words, files, history, clips) again and again until the clip is there."""
        try:
            wish = self.wish(*inputs)
        except EdgError as error:
            return (yield html.hint(""), html.words(Moment("", error=str(error))), *[gr.skip()] * 3)
        stop = self.stops.get(request.session_hash) or self.new_stop(request)
        for moment in self.studio.make(wish, stop):
            stage = html.pictures(moment) if moment.frames or moment.made else gr.skip()
            more = [gr.skip()] * 3
            if moment.made:
                for old in made[HISTORY - 1 :]:
                    self.studio.forget(old)
                made = [moment.made, *made[: HISTORY - 1]]
                more = [_files(moment.made), _gallery(made), made]
            yield stage, html.words(moment, wish), *more

    def wish(self, image: Any, prompt: Any, seed: Any, steps: Any, compare: Any, *turned: Any) -> Wish:
        """The wish out of the page's fields, as the browser sent them. Raises UsageError."""
        if not isinstance(image, Mapping):
            raise UsageError("put in an image first")
        try:
            dials = {word: float(value) for word, value in zip(self.studio.dials, turned, strict=True)}
            numbers = int(seed or 0), int(steps)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError("a field is not a number", fix="load the page again") from error
        return Wish(Path(image["path"]), str(prompt or ""), *numbers, dials, bool(compare))

    def new_stop(self, request: gr.Request) -> threading.Event:
        """A new flag that ends the visitor's wish."""
        while len(self.stops) >= VISITS:  # of tabs that are gone
            self.stops.pop(next(iter(self.stops)), None)
        stop = self.stops[request.session_hash] = threading.Event()
        return stop

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
        if event.index >= len(made):
            return [gr.skip()] * (8 + len(self.studio.dials))
        chosen = made[event.index]
        wish = chosen.wish
        settings = [str(wish.image), wish.prompt, wish.seed, wish.steps, wish.compare, *wish.dials.values()]
        return html.show(chosen), html.words(Moment("", made=chosen), wish), _files(chosen), *settings


def _files(made: Made) -> gr.File:
    return gr.File(value=[str(path) for path in made.files], visible=True)


def _gallery(made: Sequence[Made]) -> gr.Gallery:
    return gr.Gallery(value=[(str(each.thumb), html.label(each.wish)) for each in made], visible=True)
