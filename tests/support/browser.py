"""A headless Chromium, spoken to over a pair of pipes: a page as its reader finds it."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import axe_core_python

from tests.support.missing import missing
from tests.support.process import wait_until

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Browser"]

_AXE = Path(axe_core_python.__file__).with_name("axe.min.js")
_TIMEOUT_SECONDS = 90.0


class Browser:
    """A browser with one page; a context manager.

    Attributes:
        requests: The URL of everything that the page has asked for.
        errors: What the page has reported: exceptions, and what its policy has refused.
        credentials: The user and the password that its reader types where he is asked for them.
    """

    def __init__(self) -> None:
        """Find the program; entering the context starts it."""
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._program = shutil.which("chromium") or missing(
            "chromium is missing: install the Debian package chromium"
        )
        self.credentials: tuple[str, str] | None = None
        self._number = 0
        self._session = ""
        self._rest = b""

    def __enter__(self) -> Browser:
        """Start it."""
        self._profile = tempfile.mkdtemp(prefix="obskit-browser-")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Out of the way of the numbers that the browser wants.
        theirs = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        os.set_blocking(self._in, False)
        # The browser reads at descriptor 3 and writes at 4.
        script = f'exec 3<&{theirs[0]} 4>&{theirs[1]}; exec "$@"'
        self._process = subprocess.Popen(
            [
                *("bash", "-c", script, "bash", self._program, "--headless=new", "--no-sandbox"),
                *("--disable-gpu", "--no-first-run", "--disable-background-networking"),
                *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
                *("--remote-debugging-pipe", f"--user-data-dir={self._profile}", "about:blank"),
            ],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for each in theirs:
            os.close(each)
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        os.close(self._out)  # it ends when nobody speaks to it any more
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        shutil.rmtree(self._profile, ignore_errors=True)

    def show(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        script: bool = True,
    ) -> None:
        """Load a page.

        Args:
            url: Where it is.
            width: Of the window, in pixels.
            height: Of the window, in pixels.
            dark: The reader prefers a dark theme.
            script: JavaScript is on.
        """
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[theme])
        self._call("Emulation.setScriptExecutionDisabled", value=not script)
        if self.credentials is not None:
            self._call("Fetch.enable", handleAuthRequests=True)
        self._call("Page.navigate", url=url)
        shown = re.sub("//[^/@]*@", "//", url)  # the page does not learn who asks
        wait_until(
            lambda: (
                self.run("document.readyState") == "complete" and self.run("location.href") == shown
            ),
            "the page is loaded",
        )

    def run(self, expression: str) -> Any:
        """Return what an expression is on the page; awaits a promise."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key, such as Tab, which is 9."""
        for type_ in ("rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=type_, key=key, windowsVirtualKeyCode=code)
            if type_ == "rawKeyDown" and key == "Enter":
                self._call("Input.dispatchKeyEvent", type="char", key=key, text="\r")

    def violations(self) -> list[Any]:
        """Return what axe-core, which is a script, finds wrong with the page."""
        self._call("Emulation.setScriptExecutionDisabled", value=False)
        self.run(_AXE.read_text(encoding="utf-8") + ";0")
        found: list[Any] = json.loads(
            self.run(
                "axe.run().then(found => JSON.stringify(found.violations.map(each => "
                "[each.id, each.nodes.map(node => node.html + node.failureSummary)])))"
            )
        )
        return found

    def screenshot(self, path: Path) -> None:
        """Write what is to be seen into a PNG."""
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(data["data"]))

    def look(self) -> None:
        """Take in what has happened since the last call."""
        self.run("0")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._send(method, **parameters)
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _send(self, method: str, **parameters: Any) -> int:
        """Send a message and do not wait for its answer; return the number of that."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        return self._number

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + _TIMEOUT_SECONDS
        while b"\0" not in self._rest:
            assert time.monotonic() < end, "the browser does not answer"
            try:
                chunk = os.read(self._in, 1 << 20)
                assert chunk, "the browser has ended"
                self._rest += chunk
            except BlockingIOError:
                time.sleep(0.005)
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        facts = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(facts["request"]["url"])
            case "Fetch.requestPaused":
                self._send("Fetch.continueRequest", requestId=facts["requestId"])
            case "Fetch.authRequired" if self.credentials is not None:
                user, password = self.credentials
                answer = {"response": "ProvideCredentials", "username": user, "password": password}
                self._send(
                    "Fetch.continueWithAuth",
                    requestId=facts["requestId"],
                    authChallengeResponse=answer,
                )
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(facts))
            case "Log.entryAdded" if facts["entry"]["level"] == "error":
                self.errors.append(json.dumps(facts["entry"]))
