"""A real browser: headless Chromium, driven through two pipes by its own protocol, without any driver program."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Self

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ANSWER_SECONDS = 180.0  # longest wait for an answer; the machine may have other work
WAIT_SECONDS = 90.0  # longest wait for a page to become what it should be
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--no-first-run", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a graphics card
)


class BrowserError(Exception):
    """The browser rejected a command, or a script failed."""


class Browser(contextlib.AbstractContextManager["Browser"]):
    """One page: commands go in through the browser's file descriptor 3, answers and events come out of 4.

    Args:
        program: Chromium.
        profile: a folder of its own.
        noted: kinds of messages on the console that count as errors.
    """

    def __init__(self, program: str, profile: Path, *, noted: tuple[str, ...] = ("error", "assert")) -> None:
        to_browser, self.out = os.pipe()
        self.incoming, from_browser = os.pipe()
        launch = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'  # the shell moves the pipes
        command = ["/bin/bash", "-c", launch, "chromium", program, *OPTIONS, f"--user-data-dir={profile}"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, "about:blank"], pass_fds=(to_browser, from_browser), **quiet)
        os.close(to_browser)
        os.close(from_browser)
        self.noted = noted
        self.buffer = b""
        self.number = 0
        self.session: dict[str, str] = {}
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        self.resize(1500, 950)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its answer; events that come meanwhile are recorded."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            pass
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def resize(self, width: int, height: int, *, scale: float = 1, dark: bool = False) -> None:
        """Set the size of the window in CSS pixels; a narrow one is a phone's."""
        phone = width < 600
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        self("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, or the result of a promise."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(str(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = WAIT_SECONDS) -> Any:
        """Wait until an expression is true; one that fails may refer to a page that is not loaded yet."""
        end = time.monotonic() + seconds
        failure = ""
        while time.monotonic() < end:
            try:
                if value := self.run(condition):
                    return value
            except BrowserError as error:
                failure = str(error)
            time.sleep(0.05)
        text = self.run("document.body ? document.body.innerText : ''")
        pytest.fail(f"never true: {condition} {failure}; the page says {text[:800]!r}; {self.errors[:3]}")

    def pause(self, seconds: float) -> None:
        """Wait, while events are recorded."""
        self.run(f"new Promise(done => setTimeout(done, {seconds * 1000}))")

    def click(self, selector: str, *, x: float = 0.5, y: float = 0.5) -> None:
        """Press the mouse on an element, at a part of its width and height."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); "
            "e.scrollIntoView({block: 'center', behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        point = {"x": box[0] + x * box[2], "y": box[1] + y * box[3], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, **point)

    def click_text(self, text: str) -> None:
        """Click the first element with a text of its own that has these words, as soon as there is one."""
        path = json.dumps(f"//*[text()[contains(., '{text}')]]")
        node = f"document.evaluate({path}, document.body, null, XPathResult.FIRST_ORDERED_NODE_TYPE).singleNodeValue"
        self.wait(f"(one => !!one && one.dispatchEvent(new MouseEvent('click', {{bubbles: true}})))({node})")

    def press(self, key: str, code: int) -> None:
        """Press a key on the element with the focus."""
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path | None = None) -> bytes:
        """Return the visible part of the page as PNG."""
        content = base64.b64decode(self("Page.captureScreenshot")["data"])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return content

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        os.close(self.out)
        os.close(self.incoming)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.incoming], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self.incoming, 1 << 20)
            assert part, "Chromium ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        method, event = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in self.noted:
            self.errors.append(str([one.get("value", one.get("description")) for one in event["args"]]))
        elif method == "Log.entryAdded" and event["entry"]["level"] in self.noted:
            self.errors.append(f"{event['entry']['text']} {event['entry'].get('url', '')}".strip())
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        return message


def program() -> str:
    """Return the path of Chromium, or skip the test."""
    path = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("Chromium is absent: apt-get install chromium")
    return path


def page(folder: Path) -> Browser:
    """Return a browser that ends with its `with` block."""
    return Browser(program(), folder / "profile")
