"""HTML of the page of `edg demo`; text that somebody typed is escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from html import escape

import numpy as np

from edg.demo.jobs import DemoRequest, DemoResult, Update

Labels = Mapping[str, str]  # setting -> its name for visitors
NO_LABELS: Labels = {}
SMALL = 128  # pixels; narrower clips are enlarged without being smoothed
CSS = """
.gradio-container {max-width: 1200px !important; margin: auto}
#stage .row {display: flex; gap: 16px; justify-content: center; min-height: 300px}
#stage figure {flex: 1 1 0; min-width: 0; max-width: 460px; margin: 0}
#stage :is(img, video) {width: 100%; max-height: 62vh; object-fit: contain; border-radius: 8px}
#stage .empty {align-self: center; text-align: center; color: var(--body-text-color-subdued)}
#stage figcaption {margin-top: 4px; text-align: center}
.small :is(img, video) {image-rendering: pixelated}
.small#image img {width: 100%; height: 100%; object-fit: contain}
.shelf .grid-wrap {min-height: 0 !important}
.shelf label.float {position: static; border: 0; background: none; margin: 4px 0 0 4px}
.shelf .grid-container {padding-top: 4px}
:is(.gradio-container, .gradio-container main) {width: 100%}
.shelf .caption-label {white-space: normal; max-width: 100%; left: 0; right: 0; font-size: .75rem}
.shelf .thumbnail-item:not(:hover, :focus-visible) .caption-label {opacity: 0}
#files .label-clear-button {display: none}
#status .bar {height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden}
#status .bar div {height: 100%; background: var(--color-accent)}
#status p {margin: 8px 0 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums}
#status .request {color: var(--body-text-color-subdued)}
#status .error {font-weight: 600}
#status .warning {padding: 8px 12px; border-left: 4px solid #d97706; background: rgb(217 119 6 / 12%)}
@media (max-width: 640px) {#stage .row:has(.empty) {min-height: 96px}}
"""


def clips_html(update: Update) -> str:
    """Clips side by side: as predicted so far, or finished and playing."""
    if update.result:
        return result_html(update.result)
    return _row(_figure(name, _animation(frames), True) for name, frames in update.frames.items())


def result_html(result: DemoResult) -> str:
    """Finished clips side by side, playing."""
    small = result.width < SMALL
    return _row(_figure(name, _video(path.read_bytes()), small) for name, path in result.clips.items())


def hint_html(text: str) -> str:
    """A line in the place of the clip."""
    return _row([f'<div class="empty">{escape(text)}</div>'])


def status_html(update: Update, request: DemoRequest | None = None, labels: Labels = NO_LABELS) -> str:
    """The progress of a request, its warnings or its error, and the request itself."""
    asked = f'<p class="request">{escape(request_line(request, labels))}</p>' if request else ""
    if update.result:
        lines = update.result.warnings
        return asked + "".join(f'<p class="warning" role="status">{escape(line)}</p>' for line in lines)
    if update.error:
        return f'<p class="error" role="alert">{escape(update.error)}</p>'
    width = f"{100 * update.share:.1f}%"
    bar = f'<div class="bar"><div style="width: {width}" role="progressbar" aria-label="{width}"></div></div>'
    return f'{bar}<p role="status">{escape(update.text)}</p>{asked}'


def note_html(text: str) -> str:
    """A remark on what is in the fields; a command stands between backticks."""
    if not text:
        return ""
    marked = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))
    return f'<p class="warning" role="status">{marked}</p>'


def request_line(request: DemoRequest, labels: Labels = NO_LABELS) -> str:
    """A request in one line. labels: of its settings, as they stand at the sliders."""
    settings = "".join(
        f"{labels.get(name, name).lower()} {value:g}, " for name, value in request.settings.items()
    )
    return f"{request.prompt or 'no prompt'} ({settings}seed {request.seed})"


def _row(figures: Iterable[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _figure(name: str, inner: str, small: bool) -> str:
    return (
        f'<figure class="{"small" if small else ""}">{inner}<figcaption>{escape(name)}</figcaption></figure>'
    )


def _animation(frames: np.ndarray) -> str:
    """Small frames uint8 (T, h, w, 3) as an animated image."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in np.ascontiguousarray(frames)]
    buffer = io.BytesIO()
    first.save(buffer, "webp", save_all=True, append_images=rest, duration=125, loop=0, lossless=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="the clip as predicted so far" src="data:image/webp;base64,{data}">'


def _video(mp4: bytes) -> str:
    data = base64.b64encode(mp4).decode()
    return f'<video autoplay loop muted playsinline controls src="data:video/mp4;base64,{data}"></video>'
