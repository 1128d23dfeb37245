"""`edg demo`: a page on this machine where images are made to move.

It shows the published model where its weights lie under CKPT_PATH as run.sh looks for them, else the embedded
one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edg.core.arguments import Parser, whole
from edg.core.errors import EdgError, MachineError
from edg.core.process import stopping

EXAMPLES = 8
GRACE = 3.0  # seconds after a signal for the orderly end
STOPS = (signal.SIGINT, signal.SIGTERM)
LOOPBACK = "127.0.0.1"
ABOUT_SPRITES = (
    "It ships with `edg` and knows nothing but its own small world: one shape on grey, 32x32, told to move "
    "like *a red circle moves left*. Pictures of your own need the published weights: "
    "`edg fetch dynamicrafter-512 cil-512`."
)
PUBLISHED = {
    "base": "dynamicrafter_512_v1/model.ckpt",
    "tuned": "dynamicrafter_cil_512_v1/timenoise.ckpt",
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--host", default=LOOPBACK, help=f"the address that it listens on ({LOOPBACK})")
    parser.add_argument("--port", type=whole(0, 65535), default=7860, help="0: any that is free (7860)")
    parser.add_argument(
        "--model", choices=("auto", "sprites", "dynamicrafter-512"), default="auto",
        help="auto: the published one where it lies under $CKPT_PATH, else sprites (auto)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto (fp32 on cpu, fp16 on cuda), fp32, fp16, bf16")
    parser.add_argument("--threads", type=whole(1, 4096), help="CPU threads (all cores)")
    parser.add_argument("--low-memory", action="store_true", help="for small GPUs, see edg sample")


def demo(args: argparse.Namespace) -> int:
    """Serve the page until a signal. Raises MachineError."""
    if find_spec("gradio") is None:
        raise MachineError("edg demo needs the package gradio", fix="pip install 'edg[demo]'")
    from edg.demo.uploads import Uploads

    listener = listen(args.host, args.port)
    with listener, Uploads() as uploads, uploads.temporary(), Ending(uploads.folder) as ending:
        stopping.check()  # of a signal that came before
        with studio_of(args, uploads) as studio:
            os.environ |= environment(studio.folder)
            from edg.demo.server import server

            host, port = listener.getsockname()[:2]
            page = server(studio, host, examples(studio.name), args.host)
            if ending.number:
                ending.now()
            print(f"edg demo: {studio.name} at http://{host}:{port}  (Ctrl-C ends it)", flush=True)
            if not host.startswith("127."):
                print(
                    f"warning: whoever reaches {host}:{port} can use this machine; there is no password",
                    flush=True,
                )
            threading.Thread(target=import_ahead, daemon=True).start()
            page.run(sockets=[listener])
    return 0


class Ending:
    """SIGINT and SIGTERM as a flag while it is entered: the page looks at it, and a second signal interrupts
    nothing that tidies up. Who got one ends on leaving, or `GRACE` seconds after it, whatever its threads
    do."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        self._left = threading.Event()

    def __enter__(self) -> Ending:
        self._before = {number: signal.signal(number, self._flag) for number in STOPS}
        told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        # Written to by the interpreter itself, so also while the main thread is busy elsewhere.
        self._woken = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(told,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.number:
            self.now()
        self._left.set()
        signal.set_wakeup_fd(self._woken)
        os.close(self._tell)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def now(self) -> None:
        """End the process. The interpreter would look through all that torch imported, for seconds, and wait
        for threads that are in a step which nothing can stop."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(128 + (self.number or signal.SIGTERM))

    def _flag(self, number: int, frame: object) -> None:
        self.number = self.number or number

    def _watch(self, told: int) -> None:
        while (byte := os.read(told, 1)) and byte[0] not in STOPS:
            pass
        if byte and not self._left.wait(GRACE):
            self.number = self.number or byte[0]
            self.now()
        os.close(told)  # not before: a second signal is written too


def import_ahead() -> None:
    """What takes seconds to import, before the first visitor asks for a clip; who asks is told what fails."""
    from edg.networks.latent_video.clip_encoders import open_clip

    with suppress(Exception):
        open_clip()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises MachineError."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"cannot listen on {host}:{port}: {error}", fix="another --port, 0 for any"
        ) from error


def environment(folder: Path) -> dict[str, str]:
    """What Gradio reads while it is imported: it tells nobody anything, and keeps its files in `folder`."""
    return {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
    }


def studio_of(args: argparse.Namespace, uploads: Any = None) -> Any:
    """The model and the base beside it. Of published weights one network at a time is in memory. uploads:
    `edg.demo.uploads.Uploads`, by default a new one."""
    from edg.api import Model
    from edg.demo.jobs import Studio
    from edg.systems.edg.dials import find_dials
    from edg.systems.edg.files import SPRITES_DEFAULTS

    machine = {name: getattr(args, name) for name in ("device", "dtype", "threads", "low_memory")}
    paths = published() if args.model != "sprites" else {}
    if args.model != "auto" and args.model != "sprites" and not paths:
        raise MachineError(
            f"no weights of {args.model} under $CKPT_PATH", fix="edg fetch dynamicrafter-512 cil-512"
        )
    if not paths:
        from edg.sprites import WEIGHTS

        name, flags = "sprites", {**SPRITES_DEFAULTS, "preview_decoder": "sprites"}
        base = {"guidance": SPRITES_DEFAULTS["guidance_scale"], "preview_decoder": "sprites"}
        base_file, kept = WEIGHTS / "base.safetensors", None
    else:
        name, base, kept = "dynamicrafter-512", {"frame_stride": 24, "perframe_ae": True}, {}
        flags = {**base, **sets_of(paths)}
        base_file = paths["base"]
    model = Model(name, {**(flags if paths else {"preview_decoder": "sprites"}), **machine}, kept)
    beside = Model(None, {**base, **machine, "sets": [f"base={base_file}"]}, kept)
    dials = find_dials(None, name) if "recipe" in flags else None
    steps = dials.sampling.get("ddim_steps", 50) if dials else 50
    makers = {"edg": model.animate, "base": beside.animate}
    about = "" if paths else ABOUT_SPRITES
    return Studio(name, makers, steps, turnable(dials), small=not paths, about=about, uploads=uploads)


def published() -> dict[str, Path]:
    """The published weights, {} where they are not there."""
    from edg.core.files import checkpoints

    paths = {name: checkpoints() / path for name, path in PUBLISHED.items()}
    return paths if all(path.is_file() for path in paths.values()) else {}


def sets_of(paths: dict[str, Path]) -> dict[str, Any]:
    """What run.sh has merged where it is there, else merged in memory by its recipe."""
    from edg.core.files import checkpoints

    merged = {name: checkpoints() / "merge" / f"{name}.pt" for name in ("dyn", "con")}
    if all(path.is_file() for path in merged.values()):
        return merged
    return {**paths, "recipe": "edg"}


def turnable(dials: Any) -> dict[str, str]:
    """The dials that have a measured curve, with what they turn in words."""
    found = {}
    for word in ("motion", "hold") if dials else ():
        dial = getattr(dials, word)
        if stretch := dial.range():
            ends = sorted((stretch[0].mean, stretch[-1].mean), reverse=dial.wants == "less")
            found[word] = f"{dial.figure}: {ends[0]:.2f} at 0, {ends[1]:.2f} at 1 (measured)"
    return found


def examples(name: str) -> list[tuple[str, str]]:
    """(image, prompt) of the prompts that come with the model."""
    from edg import systems
    from edg.data.prompts import read_folder
    from edg.runner.prepare import default_prompts

    try:
        pairs = read_folder(default_prompts(*systems.find(name)))
        return [(str(pair.image.resolve()), pair.prompt) for pair in pairs][:EXAMPLES]
    except EdgError:  # an installation without them
        return []
