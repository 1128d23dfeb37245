"""What the page of `edg demo` shows of a moment, as HTML; whatever somebody typed is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

import numpy as np

from edg.demo.jobs import Made, Moment, Wish

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
#words .bar {height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden}
#words .bar div {height: 100%; background: var(--color-accent)}
#words p {margin: 8px 0 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums}
#words .wish {color: var(--body-text-color-subdued)}
#words .error {font-weight: 600}
"""


def pictures(moment: Moment) -> str:
    """The clips beside each other: as predicted so far, or finished and playing."""
    if moment.made:
        return show(moment.made)
    return _row(_figure(name, _film(frames), True) for name, frames in moment.frames.items())


def show(made: Made) -> str:
    """Finished clips beside each other, playing."""
    small = made.width < SMALL
    return _row(_figure(name, _video(path.read_bytes()), small) for name, path in made.clips.items())


def hint(text: str) -> str:
    """A line where the clip will be."""
    return _row([f'<div class="empty">{escape(text)}</div>'])


def words(moment: Moment, wish: Wish | None = None) -> str:
    """How far it is, and what was asked for."""
    done = f'<p class="wish">{escape(label(wish))}</p>' if wish else ""
    if moment.made:
        lines = moment.made.warnings
        return done + "".join(f'<p class="warning" role="status">{escape(line)}</p>' for line in lines)
    if moment.error:
        return f'<p class="error" role="alert">{escape(moment.error)}</p>'
    width = f"{100 * moment.share:.1f}%"
    bar = f'<div class="bar"><div style="width: {width}" role="progressbar" aria-label="{width}"></div></div>'
    return f'{bar}<p role="status">{escape(moment.words)}</p>{done}'


def label(wish: Wish) -> str:
    """A wish in a line."""
    dials = "".join(f", {word} {turned:g}" for word, turned in wish.dials.items())
    return f"{wish.prompt or 'no prompt'} (seed {wish.seed}, steps {wish.steps}{dials})"


def _row(figures: Iterable[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def _figure(name: str, inner: str, small: bool) -> str:
    return (
        f'<figure class="{"small" if small else ""}">{inner}<figcaption>{escape(name)}</figcaption></figure>'
    )


def _film(frames: np.ndarray) -> str:
    """Small frames uint8 (T, h, w, 3) as an image that plays."""
    from PIL import Image

    first, *rest = [Image.fromarray(frame) for frame in np.ascontiguousarray(frames)]
    buffer = io.BytesIO()
    first.save(buffer, "webp", save_all=True, append_images=rest, duration=125, loop=0, lossless=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="the clip as predicted so far" src="data:image/webp;base64,{data}">'


def _video(mp4: bytes) -> str:
    data = base64.b64encode(mp4).decode()
    return f'<video autoplay loop muted playsinline controls src="data:video/mp4;base64,{data}"></video>'
