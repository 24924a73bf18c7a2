"""A headless Chromium for tests, steered over its own pipe; nothing else is needed for it."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --remote-debugging-pipe "
    "--autoplay-policy=no-user-gesture-required"
).split()
PATIENCE = 60.0  # seconds for one answer
# Chromium reads commands from file 3 and writes answers to file 4.
LAUNCH = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def installed() -> str | None:
    """The path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page: what the browser said about it while it was open is kept in `complaints`."""

    def __init__(self, commands, answers):
        self._commands, self._answers, self._buffer = commands, answers, b""
        self._session, self._number = {}, 0
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """One command of the DevTools protocol, and its result."""
        self._number += 1
        sent = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._commands, json.dumps(sent).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def _next(self) -> dict:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            assert select.select([self._answers], [], [], max(0, left))[0], "no answer in time"
            read = os.read(self._answers, 1 << 20)
            assert read, "the browser is gone"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, height: int) -> None:
        """Opens a file in a window of that size, and waits until it is loaded."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.run("new Promise(go => document.readyState == 'complete' ? go() : onload = go)")

    def run(self, script: str):
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Console messages, uncaught errors, and requests that leave the page."""
        bad = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        said = [json.dumps(e["params"]) for e in self.events if e["method"] in bad]
        asked = (
            e["params"]["request"]["url"]
            for e in self.events
            if e["method"] == "Network.requestWillBeSent"
        )
        return said + [url for url in asked if not url.startswith(("data:", "file:", "about:"))]

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG, as long as it is."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def tab(profile: Path):
    """A Tab in a browser that keeps its state in a fresh folder `profile`."""
    (to_read, commands), (answers, to_write) = os.pipe(), os.pipe()
    launch = [sys.executable, "-c", LAUNCH, str(to_read), str(to_write)]
    browser = subprocess.Popen(
        [*launch, installed(), *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_read, to_write),
        stderr=subprocess.DEVNULL,
    )
    for end in (to_read, to_write):
        os.close(end)
    try:
        yield Tab(commands, answers)
    finally:
        browser.terminate()
        browser.wait(10)
        for end in (commands, answers):
            os.close(end)
