"""A headless Chromium that a test drives, by its debugging protocol over a WebSocket."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

from tests.waiting import wait_until

PROGRAM: Final = shutil.which("chromium")
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
    "--autoplay-policy=no-user-gesture-required",
)
_MAX_MESSAGE_BYTES: Final = 64 << 20


class Chromium:
    """One browser with one page.

    folder: for its profile. microphone: a WAV file that is played to the page again and again; None for no
    microphone.
    """

    def __init__(self, folder: Path, microphone: Path | None = None) -> None:
        assert PROGRAM is not None
        fake: tuple[str, ...] = ()
        if microphone is not None:
            fake = (
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone.absolute()}",
            )
        self._profile = folder / "profile"
        self._process = subprocess.Popen(
            [PROGRAM, *_FLAGS, *fake, f"--user-data-dir={self._profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._ids = itertools.count(1)
        self._open = ExitStack()
        self._socket: ClientConnection
        self.console: list[str] = []
        """Errors and warnings of the page."""

    def __enter__(self) -> Chromium:
        try:
            self._connect()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._end()

    def _connect(self) -> None:
        port_file = self._profile / "DevToolsActivePort"
        wait_until(
            lambda: port_file.exists() and port_file.read_text().count("\n"),
            what="the browser's debugging port",
        )
        port = port_file.read_text().splitlines()[0]

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=60) as answer:
                targets = json.load(answer)
            return next(
                (target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"), ""
            )

        address = wait_until(page, what="the browser's page")
        self._socket = self._open.enter_context(
            connect(address, max_size=_MAX_MESSAGE_BYTES, compression=None)
        )
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def _end(self) -> None:
        self._open.close()
        self._process.kill()
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; return its result."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=120))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded":
            entry = message["params"]["entry"]
            self.console.append(f"{entry['level']}: {entry['text']} {entry.get('url', '')}")

    def open(self, address: str) -> None:
        """Go to an address and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        wait_until(
            lambda: (
                self.evaluate("document.readyState") == "complete"
                and self.evaluate("location.href") != "about:blank"
            ),
            what="the page",
        )

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression on the page; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click an element."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def choose_file(self, selector: str, path: Path) -> None:
        """Put a file into an input, as a person chooses it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.absolute())])

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Give the page another size, and light or dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
