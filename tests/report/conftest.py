"""Pages in a browser, and small runs as `edg sample` and `edg score` leave them."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from edg.core.files import write_json
from edg.core.formats import clip_path, write_clip
from edg.core.hashing import sha256_file
from edg.core.video import write_image

FRAMES, SIDE, FPS = 8, 32, 8
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script> "quoted" & \'so\''


@pytest.fixture
def open_page(browser):
    """open_page(path, **context) -> a page; its list `errors` holds every error and request to the net."""
    contexts = []

    def opened(path, part="", **options):
        context = browser.new_context(**({"reduced_motion": "reduce"} | options))
        contexts.append(context)
        page = context.new_page()
        page.errors = []
        page.on("console", lambda m: m.type in ("error", "warning") and page.errors.append(m.text))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or page.errors.append(r.url))
        page.goto(f"file://{path}{part}")
        return page

    yield opened
    for context in contexts:
        context.close()


def until(page, expression, *argument, seconds=20):
    """Wait until a JavaScript expression holds. (playwright's way needs eval, which the page forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(expression, *argument):
        assert time.monotonic() < end, f"waited {seconds} s for {expression}"
        time.sleep(0.03)


def moving(speed, side=SIDE, frames=FRAMES, seed=0):
    """uint8 (T, side, side, 3): a coarse pattern that runs `speed` px/frame to the right."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    picture = np.kron(noise, np.ones((side // 8, side // 8, 1), np.uint8))
    return np.stack([np.roll(picture, round(speed * t), axis=1) for t in range(frames)])


def make_run(folder, speed=1, clips=3, prompt="a thing moves right", format="mp4", **settings):
    """A folder of clips with records, {NNNN}-thing_sample0; prompts are numbered but the last."""
    image = folder / "images/thing.png"
    for index in range(clips):
        clip_id = f"{index:04d}-thing_sample0"
        frames = moving(speed, seed=index)
        write_image(image, frames[0]) if not index else None
        files = [clip_path(folder, clip_id, one) for one in format.split(",")]
        for one, path in zip(format.split(","), files, strict=True):
            write_clip(path, frames, one, fps=FPS, crf=10, tags={"comment": json.dumps({"fps": FPS})})
        text = prompt if index == clips - 1 else f"{prompt} {index}"
        write_record(folder, clip_id, text, image, [path.name for path in files], **settings)
    return folder


def write_record(folder, clip_id, prompt, image, files=None, **settings):
    made = {"id": clip_id, "prompt": prompt, "image_sha256": sha256_file(image), "seed": 1, **settings}
    record = {
        "id": clip_id,
        "status": "done",
        "settings": made,
        "image": str(image),
        "video": (files or [f"{clip_id}.mp4"])[0],
        **({"files": dict.fromkeys(files, "")} if files else {}),
    }
    write_json(folder / f"{clip_id}.json", record)


def write_scores(folder, **means):
    """scores.jsonl and scores.json of a run: metric -> mean; the clips' values lie around it."""
    clips = sorted(folder.glob("*.mp4"))
    with open(folder / "scores.jsonl", "w", encoding="utf-8") as file:
        for index, clip in enumerate(clips):
            wobble = {
                name: mean + 0.1 * np.sin(3.0 * index + len(name)) + 0.01 * np.sin(7.0 * index + 50 * mean)
                for name, mean in means.items()
            }
            file.write(
                json.dumps({"clip": clip.name, "id": clip.stem, "scores": wobble, "failed": {}}) + "\n"
            )
    metrics = {
        name: {
            "mean": mean,
            "low": mean - 0.1,
            "high": mean + 0.1,
            "unit": "",
            "better": "higher",
            "what": name,
        }
        for name, mean in means.items()
    }
    write_json(folder / "scores.json", {"protocol": {}, "metrics": metrics})


@pytest.fixture(scope="session")
def make():
    return SimpleNamespace(
        run=make_run, record=write_record, scores=write_scores, moving=moving, hostile=HOSTILE, until=until
    )
