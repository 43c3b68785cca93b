"""The demo's server as a process, and its page in a browser."""

import base64
import contextlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from helpers import ROOT

ENVIRONMENT = os.environ | {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PLATFORMS": "cpu",
    "PYTHONUNBUFFERED": "1",
}


@contextlib.contextmanager
def served(*flags: str) -> Iterator[str]:
    """The address of a server with these flags."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vqd_jax", "demo", *flags, "--port=0"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield re.match(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
    finally:
        process.terminate()
        process.wait(30)


class Page:
    """The freshly opened page."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.until(lambda: self.state == "ready")
        browser.find_element("css selector", "summary").click()
        self.type("num", 2)
        self.type("calls", 6)

    @property
    def state(self):
        return self.script("return document.body.dataset.state")

    def script(self, text, *arguments):
        return self.browser.execute_script(text, *arguments)

    def click(self, element):
        """Clicks where the buttons that stay in view do not cover the element."""
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def find(self, id):
        return self.browser.find_element("id", id)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def type(self, id, value):
        self.find(id).clear()
        self.find(id).send_keys(str(value))

    def until(self, true, seconds=120):
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, self.find("status").text + self.find("error").text
            time.sleep(0.02)
        return found

    def seen(self):
        """Records each state of the first image, with the status beside it, until the request ends."""
        self.script("""
            window.seen = [];
            new MutationObserver(() => {
              const image = document.querySelector("figure img"), status = document.getElementById("status").textContent;
              if (image && image.src && seen.at(-1)?.[0] !== image.src) seen.push([image.src, image.alt, status]);
            }).observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ["src"]});""")

    def finished(self):
        self.until(lambda: self.state in ("done", "ended"))
        assert self.find("error").text == ""
        return self.script("return window.seen")

    def stop_and_draw(self):
        """Stops the request; the next one, of 6 steps, runs to its end."""
        self.find("stop").click()
        self.until(lambda: self.find("status").text == "Stopped.")
        self.type("calls", 6)
        self.find("draw").click()
        self.until(lambda: self.state == "running")
        self.finished()

    def pixels(self):
        """Pixels of the newest images from their files."""
        images = self.all("article:first-child figure img")
        sources = [image.get_attribute("src") for image in images]
        return [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))))
            for s in sources
        ]
