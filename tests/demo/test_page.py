"""`edg demo` as a visitor finds it: in headless Chromium, clicked through, with the embedded model."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edg.cli.demo import demo_model
from edg.cli.main import main, parser_of
from edg.core.errors import UsageError
from edg.core.hashing import sha256_file
from edg.core.video import read_frames, read_metadata
from edg.demo import view
from edg.demo.jobs import DemoBackend, DemoModel, DemoRequest, Slider, Update
from edg.networks.latent_video.presets import SPRITES
from edg.systems.edg.demo import (
    ABOUT_SPRITES,
    PUBLISHED,
    dial_sliders,
    doubt_of_sprites,
    published,
    sets_of,
)
from edg.systems.edg.dials import find_dials

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "prompts/sprites/05-red-circle.png"
HOSTILE = "<img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>"
SLOW = 240_000  # ms, on a busy machine
# Every text that stood under the clip, until `status` takes it, and whether a preview was shown: some are
# there only for a moment.
OBSERVE = """
window.texts = []
window.previewed = false
let last = ""
new MutationObserver(() => {
    previewed ||= Boolean(document.querySelector("#stage img"))
    const text = document.querySelector("#status")?.innerText ?? ""
    if (text !== last) texts.push(last = text)
}).observe(document, {subtree: true, childList: true, characterData: true})
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(process, address, its folder) of a demo on a free port, with the embedded model."""
    home = tmp_path_factory.mktemp("demo")
    environment = os.environ | {"TMPDIR": str(home), "CKPT_PATH": str(home / "none"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "edg", "demo", "--port", "0", "--threads", "1"]
    with open(home / "stderr", "w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
    yield process, address, home
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert "Traceback" not in (home / "stderr").read_text()
    assert not list(home.glob("edg-demo-*")), "the demo's folder went with it"


@pytest.fixture
def page(browser, server):
    """The page in a tab of its own; at the end: it has asked nobody but the demo, and raised nothing."""
    asked, raised = [], []
    tab = browser.new_page(viewport={"width": 1280, "height": 1000})
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: raised.append(str(error)))
    visit(tab, server[1])
    yield tab
    tab.close()
    assert asked and not [url for url in asked if not url.startswith((server[1], "data:", "blob:"))]
    assert not raised


def visit(tab, address):
    tab.set_default_timeout(SLOW)
    tab.add_init_script(OBSERVE)
    tab.goto(address)
    tab.wait_for_selector("#go")


def put(page, **values):
    for name, value in values.items():
        page.locator(f"#{name} :is(textarea, input[type=number])").fill(str(value))
        page.keyboard.press("Tab")


def upload(page, path):
    with page.expect_response(lambda response: "/upload" in response.url):
        page.locator("#image input[type=file]").set_input_files(path)
    page.wait_for_timeout(500)


def status(page, pattern):
    """The first text under the clip that matches, of those that no earlier call has passed."""
    try:
        page.wait_for_function("(p) => texts.some((text) => new RegExp(p).test(text))", arg=pattern)
    except Exception as error:  # Playwright has a TimeoutError of its own
        raise AssertionError(f"no {pattern!r} in {page.evaluate('texts')}") from error
    find = "(p) => texts.splice(0, texts.findIndex((text) => new RegExp(p).test(text)) + 1).at(-1)"
    return page.evaluate(find, pattern)


def sha256_of(page, selector):
    """SHA-256 of what the first of these elements shows."""
    source = page.locator(selector).first.get_attribute("src")
    read = "async (src) => [...new Uint8Array(await (await fetch(src)).arrayBuffer())]"
    inline = source.partition(";base64,")[2]
    return sha256(base64.b64decode(inline) if inline else bytes(page.evaluate(read, source))).hexdigest()


def clip(page):
    page.wait_for_selector("#stage video")
    page.wait_for_selector("#go:enabled")


def downloaded(page, index):
    with page.expect_download() as download:
        page.locator("#files a[download]").nth(index).click()
    return Path(download.value.path()), download.value.suggested_filename


@pytest.mark.slow
def test_a_clip_with_its_record(page):
    upload(page, IMAGE)
    put(page, prompt="a red circle moves left", steps=40, seed=7, motion=0.4)
    page.click("#go")
    status(page, r"(dyn|con) \d+/\d+")
    clip(page)
    assert page.evaluate("previewed")
    assert ABOUT_SPRITES[:30].replace("`", "") in page.inner_text("body")
    page.wait_for_function("document.querySelector('#stage video').currentTime > 0.1")
    assert page.evaluate("document.querySelector('#stage video').videoWidth") == SPRITES.width
    (video, name), (record, _) = downloaded(page, 0), downloaded(page, 1)
    said = json.loads(record.read_text())
    assert name == said["video"] == "0000-05-red-circle_sample0.mp4"
    assert read_frames(video).shape == (SPRITES.frames, SPRITES.height, SPRITES.width, 3)
    assert read_metadata(video)["prompt"] == said["settings"]["prompt"] == "a red circle moves left"
    assert said["settings"]["seed"] == 7 and said["settings"]["options"]["steps"] == 40
    assert said["dials"]["motion"] == 0.4 and sha256_file(video) == said["video_sha256"]
    assert said["settings"]["image_sha256"] == sha256_file(IMAGE), "the file that was uploaded, not a copy"


@pytest.mark.slow
def test_the_button_is_above_the_fold_of_a_phone(browser, server):
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    visit(tab, server[1])
    tab.wait_for_selector("#image img")
    box = tab.locator("#go").bounding_box()
    assert box["y"] + box["height"] < 844 and tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert not tab.is_visible("#measured p"), "figures are behind a question mark"
    tab.click("#measured button")
    tab.wait_for_selector("#measured p")
    dials, shown = find_dials(None, "sprites"), tab.inner_text("#measured")
    for dial in (dials.motion, dials.hold):
        assert dial.figure in shown
        assert all(f"{point.mean:.2f}" in shown for point in (dial.range()[0], dial.range()[-1]))
    tab.evaluate("scrollTo(0, 0)")
    put(tab, steps=1)
    tab.click("#go")
    clip(tab)
    tab.wait_for_timeout(1000)  # scrolls smoothly
    box = tab.locator("#stage video").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] < 844, "the clip is in view"
    tab.close()


def test_a_dial_without_a_curve_has_no_slider():
    assert dial_sliders(None) == {}
    flat = find_dials(None, "sprites")
    flat = replace(flat, hold=replace(flat.hold, points=flat.hold.points[:1]))
    assert list(dial_sliders(flat)) == ["motion"]


@pytest.mark.slow
def test_a_photo_is_answered_before_the_run(page):
    """By a model that knows one shape on grey; its own pictures are taken without a word. The answer goes
    with the photo."""
    answered = "document.querySelector('#status code')?.innerText.includes('dynamicrafter-512') ?? false"
    leave = {
        "upload": lambda: upload(page, IMAGE),
        "example": lambda: page.locator("#examples button").nth(2).click(),
        "clear": lambda: page.locator(
            "#image button[aria-label*=emove], #image button[aria-label*=lear]"
        ).click(),
    }
    for other in leave.values():
        upload(page, ROOT / "prompts/scenes/02-hot-air-balloon.png")
        page.wait_for_function(answered)
        assert page.is_enabled("#go"), "it asks nothing"
        other()
        page.wait_for_function("document.querySelector('#status').innerText.trim() == ''")


@pytest.mark.slow
def test_an_empty_prompt_is_asked_about_once(page):
    put(page, prompt=" ", steps=1)
    page.click("#go")
    assert status(page, "prompt is empty") and page.locator("#stage video").count() == 0
    page.wait_for_selector("#go:enabled")
    page.click("#go")
    clip(page)


def test_the_question_comes_back_after_a_prompt_alone():
    from edg.demo.server import Events

    with DemoBackend(DemoModel("fake", {})) as backend:
        events, asked = Events(backend, []), []
        for visitor, prompt in [
            ("a", ""),
            ("a", " "),
            ("a", ""),
            ("b", ""),
            ("a", "p"),
            ("b", ""),
            ("a", ""),
        ]:
            try:
                events.ask_for_prompt(SimpleNamespace(session_hash=visitor), DemoRequest(IMAGE, prompt, 1))
                asked.append(False)
            except UsageError:
                asked.append(True)
    assert asked == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("path", sorted((ROOT / "prompts/sprites").glob("*.png")), ids=lambda p: p.stem)
def test_pictures_of_its_world_raise_no_doubt(path):
    assert doubt_of_sprites(path) == ""


@pytest.mark.parametrize("path", sorted((ROOT / "prompts/scenes").glob("*.png")), ids=lambda p: p.stem)
def test_other_pictures_do(path):
    assert "edg fetch" in doubt_of_sprites(path)


@pytest.mark.slow
def test_beside_the_base_model_and_history(page):
    page.locator("#examples button").nth(1).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('green circle')")
    put(page, steps=2, seed=5, motion=0.25)
    page.check("#compare input")
    page.click("#go")
    clip(page)
    captions = page.locator("#stage figcaption")
    assert captions.all_inner_texts() == ["edg", "base"] and page.locator("#files a[download]").count() == 4
    base = json.loads(downloaded(page, 3)[0].read_text())
    assert list(base["set_paths"]) == ["base"] and base["settings"]["seed"] == 5
    made = json.loads(downloaded(page, 1)[0].read_text())["video_sha256"]
    page.uncheck("#compare input")
    upload(page, IMAGE)
    put(page, prompt="another", steps=3, seed=6, motion=0.5)
    page.click("#go")
    status(page, "^another .*steps 3, seed 6")
    page.wait_for_selector("#history button >> nth=1")
    page.locator("#history button.thumbnail-item").nth(1).click()  # the newest comes first
    status(page, "green circle.*steps 2, seed 5")
    page.wait_for_function("document.querySelector('#seed input').value == '5'")
    assert page.input_value("#prompt textarea") == "a green circle moves right slowly"
    assert page.is_checked("#compare input") and captions.count() == 2
    assert page.input_value("#motion input[type=number]") == "0.25"
    assert page.input_value("#steps input[type=number]") == "2"
    assert sha256_of(page, "#image img") == base["settings"]["image_sha256"] != sha256_file(IMAGE)
    assert sha256_of(page, "#stage video") == made
    assert "base" in downloaded(page, 3)[1]
    page.click("#go")  # the same fields give the same clip
    page.wait_for_selector("#history button >> nth=2")
    page.wait_for_selector("#go:enabled")
    assert json.loads(downloaded(page, 1)[0].read_text())["video_sha256"] == made


@pytest.mark.slow
def test_stop_ends_the_denoising(page):
    put(page, steps=100)
    page.click("#go")
    status(page, r"dyn \d+/")
    page.click("#halt")
    step, of = re.search(r"stopped: edg after dyn (\d+)/(\d+)", status(page, "stopped")).groups()
    assert 1 <= int(step) < int(of) <= 100
    page.wait_for_selector("#go:enabled")
    assert page.locator("#stage video").count() == 0 and not page.is_visible("#history")
    put(page, steps=1)  # nobody is in the way of the next one
    page.click("#go")
    clip(page)


@pytest.mark.slow
def test_what_is_typed_is_shown_and_not_run(page):
    put(page, prompt=HOSTILE, steps=1)
    page.click("#go")
    clip(page)
    assert "<img src=x" in page.inner_text("#status")
    page.locator("#history button.thumbnail-item").hover()
    page.locator("#history button.thumbnail-item").click()
    page.wait_for_timeout(500)
    assert page.title() != "caught" and page.locator("[onerror], img[src='x']").count() == 0
    assert "<img src=x" in json.loads(downloaded(page, 1)[0].read_text())["settings"]["prompt"]


@pytest.mark.parametrize("name", ["notes.png", "<b>x.png", "page.svg"])
@pytest.mark.slow
def test_what_is_no_image(page, tmp_path, name):
    path = tmp_path / name
    path.write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>document.title='caught'</script></svg>")
    upload(page, path)
    assert status(page, "image") and page.title() != "caught"
    assert page.locator("#status b").count() == 0 and "/" not in page.inner_text("#status")
    page.click("#go")
    status(page, "choose an image first")
    page.wait_for_selector("#go:enabled")


@pytest.mark.slow
def test_closing_the_tab_stops_the_denoising(browser, server, page):
    other = browser.new_page()
    visit(other, server[1])
    put(other, steps=100, prompt="of one who went")
    other.check("#compare input")
    other.click("#go")
    minutes, seconds = re.search(r"(\d+):(\d+) left", status(other, r"\d left")).groups()
    other.close()
    began = time.monotonic()
    put(page, steps=1)
    page.click("#go")
    status(page, r"dyn \d|seed 123")
    assert time.monotonic() - began < 60 * int(minutes) + int(seconds), "else it waited for its turn"
    clip(page)


@pytest.mark.slow
def test_it_listens_on_loopback_only(server):
    port = int(server[1].rpartition(":")[2])
    listening = {
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{server[0].pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    }
    assert listening == {f"0100007F:{port:04X}"}


@pytest.mark.parametrize(
    "path, headers, code",
    [
        ("/", {"Host": "elsewhere.example"}, 400),  # a site that calls this machine its own
        ("/gradio_api/file=http://elsewhere.example/x", {}, 404),
        ("/gradio_api/file=/etc/hostname", {}, 403),
        ("/docs", {}, 404),
    ],
)
@pytest.mark.slow
def test_what_is_refused(server, path, headers, code):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(server[1] + path, headers=headers))
    assert error.value.code == code


SLIDERS = (Slider("dial", 0, 1, 0.05, 0.5), Slider("steps", 1, 100, 1, 50))


@pytest.fixture
def backend():
    """A backend whose model takes a hundred steps of nothing; `steps` holds those that it took."""

    def animate(image, prompt, *, progress, watch, **settings):
        for step in range(100):
            backend.steps.append(step)
            progress("phase", step + 1, 100, share=(step + 1) / 100)
            time.sleep(0.01)

    with DemoBackend(DemoModel("fake", {"edg": animate}, SLIDERS)) as backend:
        backend.steps = []
        with open(IMAGE, "rb") as file:
            backend.image = backend.uploads.put("x.png", file)
        yield backend


@pytest.mark.parametrize("how", ["stop", "close"])
@pytest.mark.slow
def test_the_model_takes_no_further_step(backend, how):
    stop = threading.Event()
    updates = backend.generate(DemoRequest(backend.image, "", 1), stop)
    next(update for update in updates if "phase" in update.text)
    stop.set() if how == "stop" else updates.close()
    last = [update.text for update in updates][-1:]
    time.sleep(0.1)
    taken = len(backend.steps)
    time.sleep(0.2)
    assert len(backend.steps) == taken < 50
    assert last == ([] if how == "close" else [f"stopped: edg after phase {taken}/100"])


@pytest.mark.slow
def test_the_end_waits_for_the_current_step(backend):
    updates = backend.generate(DemoRequest(backend.image, "", 1), threading.Event())
    next(update for update in updates if "phase" in update.text)
    backend.__exit__()
    taken = len(backend.steps)
    time.sleep(0.2)
    assert len(backend.steps) == taken < 50 and not backend.folder.exists()


@pytest.mark.parametrize(
    "change, named",
    [
        ({"image": IMAGE}, "image"),
        ({"prompt": "x" * 301}, "301"),
        ({"settings": {"steps": 101}}, "steps 101"),
        ({"seed": -1}, "seed -1"),
        ({"settings": {"dial": 1.5}}, "dial 1.5"),
        ({"settings": {"dial": float("nan")}}, "dial nan"),
    ],
)
def test_values_out_of_bounds(backend, change, named):
    request = {"image": backend.image, "prompt": "", "seed": 1, "settings": {"steps": 2}} | change
    (*_, last) = backend.generate(DemoRequest(**request), threading.Event())
    assert named in last.error and not backend.steps


def test_what_is_warned_of_a_clip_is_shown(tmp_path):
    image, frames = tmp_path / "x.png", np.zeros((2, 32, 32, 3), np.uint8)
    settings = {"prompt": "p", "seed": 1, "fps": 8, "crf": 10}
    record = {"id": "a", "settings": settings, "warnings": ["lost: <b>left"]}
    clips = {name: SimpleNamespace(frames=frames, record=record) for name in ("edg", "base")}
    with DemoBackend(DemoModel("fake", dict.fromkeys(clips))) as backend:
        result = backend._write(DemoRequest(image, "p", 1), clips)
        assert result.warnings == ("lost: <b>left",)
        assert "lost: &lt;b&gt;left" in view.status_html(Update("", result=result), result.request)
        plain = replace(result, warnings=())
        assert "warning" not in view.status_html(Update("", result=plain), result.request)


def test_weights_that_are_there(tmp_path, monkeypatch):
    """As run.sh looks for them: base and tuned, and what it has merged."""
    monkeypatch.setenv("CKPT_PATH", str(tmp_path))
    assert published() == {}
    for path in (*PUBLISHED.values(), "merge/dyn.pt", "merge/con.pt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
    for path in PUBLISHED.values():
        (tmp_path / path).touch()
    assert sets_of(published()) == {**published(), "recipe": "edg"}
    for name in ("dyn", "con"):
        (tmp_path / f"merge/{name}.pt").touch()
    assert sets_of(published()) == {name: tmp_path / f"merge/{name}.pt" for name in ("dyn", "con")}
    args = parser_of("demo").parse_args([])
    model = demo_model(args)
    assert (model.name, list(model.animate)) == ("dynamicrafter-512", ["edg", "base"])
    assert [slider.name for slider in model.sliders] == ["steps"] and not model.about


@pytest.mark.slow
def test_a_port_that_is_taken(server, capsys):
    port = server[1].rpartition(":")[2]
    assert main(["demo", "--port", port]) == 4
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_without_gradio(monkeypatch, capsys):
    monkeypatch.setattr("edg.cli.demo.find_spec", lambda name: None)
    assert main(["demo"]) == 4
    assert "gradio" in capsys.readouterr().err


def test_a_request_is_shown_in_the_words_of_its_sliders():
    request = DemoRequest(IMAGE, "p", 1, {"dial": 0.5, "steps": 2})
    assert view.request_line(request, {"dial": "More of it"}) == "p (more of it 0.5, steps 2, seed 1)"
    assert "more of it" in view.status_html(Update("", 0.5), request, {"dial": "More of it"})


def test_a_note_is_text_with_commands():
    assert "<code>edg fetch</code>" in view.note_html("use `edg fetch`") and view.note_html("") == ""
    assert "<b>" not in view.note_html("`<b>`")
