"""The process of `edg demo`: its socket, its temporary folder, and its end by signals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edg.core.errors import MachineError
from edg.core.log import warn
from edg.core.process import stopping
from edg.demo.jobs import DemoBackend, DemoModel
from edg.demo.uploads import Uploads

GRACE = 3.0  # seconds from a signal to the forced end
STOPS = (signal.SIGINT, signal.SIGTERM)


def serve(
    load: Callable[[], DemoModel], host: str, port: int, ready: Callable[[DemoModel, str], None]
) -> None:
    """Serve the page of a model until a signal. ready: called with the model and the page's address. Raises
    MachineError."""
    listener = listen(host, port)
    with listener, Uploads() as uploads, uploads.temporary(), Shutdown(uploads.folder) as shutdown:
        stopping.check()  # a signal may have come before
        with DemoBackend(load(), uploads) as backend:
            os.environ |= gradio_environment(backend.folder)
            from edg.demo.server import server

            address, port = listener.getsockname()[:2]
            page = server(backend, address, host)
            if shutdown.number:
                shutdown.now()
            ready(backend.model, f"http://{address}:{port}")
            if not address.startswith("127."):
                warn(f"there is no password: anyone who can reach {address}:{port} can use this machine")
            threading.Thread(target=_warm_up, args=(backend.model,), daemon=True).start()
            page.run(sockets=[listener])


def _warm_up(model: DemoModel) -> None:
    with suppress(Exception):  # the first request reports it
        model.warm_up()


class Shutdown:
    """SIGINT and SIGTERM as a flag while it is entered: the server looks at it, and a second signal
    interrupts no cleaning up. After a signal the process ends on leaving, or `GRACE` seconds later, whatever
    its threads do."""

    def __init__(self, folder: Path):
        self.folder, self.number = folder, 0
        self._left = threading.Event()

    def __enter__(self) -> Shutdown:
        self._before = {number: signal.signal(number, self._flag) for number in STOPS}
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Written to by the interpreter itself, so also while the main thread is busy elsewhere.
        self._woken = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.number:
            self.now()
        self._left.set()
        signal.set_wakeup_fd(self._woken)
        os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def now(self) -> None:
        """End the process. A normal exit would take seconds for torch's modules, and wait for threads in a
        step that nothing can stop."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(128 + (self.number or signal.SIGTERM))

    def _flag(self, number: int, frame: object) -> None:
        self.number = self.number or number

    def _watch(self, reader: int) -> None:
        while (byte := os.read(reader, 1)) and byte[0] not in STOPS:
            pass
        if byte and not self._left.wait(GRACE):
            self.number = self.number or byte[0]
            self.now()
        os.close(reader)  # not before: a second signal is written too


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises MachineError."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise MachineError(
            f"cannot listen on {host}:{port}: {error}", fix="choose another --port, or 0 for any free one"
        ) from error


def gradio_environment(folder: Path) -> dict[str, str]:
    """Environment variables that Gradio reads while it is imported: no telemetry, its files in `folder`."""
    return {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
    }
