"""A headless Chromium, driven through two pipes by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ANSWER_SECONDS = 60.0


class Page:
    """One tab.

    Args:
        read: descriptor of the browser's answers.
        write: descriptor of its commands.
    """

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self.number, self.rest = 0, b""
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.size(1500, 950)
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's answer; events in between are kept."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    @property
    def errors(self) -> list[str]:
        """What the console shows in red: thrown, written, or not loaded."""
        self.run("0")  # takes in what has happened meanwhile
        found = []
        for event in self.events:
            values = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                details = values["exceptionDetails"]
                found.append(str(details.get("exception", {}).get("description") or details["text"]))
            elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
                found.append(" ".join(str(one.get("value", one.get("description"))) for one in values["args"]))
            elif event["method"] == "Log.entryAdded" and values["entry"]["level"] == "error":
                found.append(f"{values['entry']['text']} {values['entry'].get('url', '')}".strip())
        return found

    def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """Of the window, in CSS pixels."""
        options = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.send("Emulation.setDeviceMetricsOverride", **options)

    def scheme(self, name: str) -> None:
        """`light` or `dark`, as the system prefers it."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def open(self, url: str) -> None:
        """Go there."""
        self.send("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 90.0) -> Any:
        """Until an expression is true; one that fails may be of a page that is not there yet."""
        end = time.monotonic() + seconds
        failure = ""
        while time.monotonic() < end:
            try:
                if value := self.run(script):
                    return value
            except RuntimeError as error:
                failure = str(error)
            time.sleep(0.5)
        text = self.run("document.body ? document.body.innerText : ''")
        pytest.fail(f"the page never had: {script} {failure}; it says {text[:800]!r}; {self.errors[:3]}")

    def click(self, text: str) -> None:
        """The first element that has a text of its own with these words, when it is there."""
        path = json.dumps(f"//*[text()[contains(., '{text}')]]")
        found = f"document.evaluate({path}, document.body, null, XPathResult.FIRST_ORDERED_NODE_TYPE).singleNodeValue"
        self.wait(f"(one => !!one && one.dispatchEvent(new MouseEvent('click', {{bubbles: true}})))({found})")

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        """As PNG; the whole page, or the window."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self.rest:
            if not select.select([self.read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            self.rest += os.read(self.read, 1 << 20)
        message, _, self.rest = self.rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """A tab of a browser that ends with the block."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("Chromium is not installed")
    commands, answers = os.pipe(), os.pipe()
    options = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    options += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars", "--no-first-run"]
    # the protocol wants its pipes at the descriptors 3 and 4
    shell = f'exec "$0" "$@" 3<&{commands[0]} 4>&{answers[1]}'
    with (folder / "browser.log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell, program, *options],
            pass_fds=(commands[0], answers[1]),
            stdout=log,
            stderr=log,
        )
        os.close(commands[0])
        os.close(answers[1])
        try:
            yield Page(answers[0], commands[1])
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(commands[1])
            os.close(answers[0])
