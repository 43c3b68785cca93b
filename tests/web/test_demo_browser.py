"""The demo in headless Chromium with the shipped model: what users do, see and get as files."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from helpers import ROOT
from helpers.demo_page import ENVIRONMENT, Page, served
from helpers.ports import free_port
from vqd_jax.data.transforms import Resize


@pytest.fixture(scope="module")
def address():
    with served("--workdir=pretrained/emoji") as address:
        yield address


@pytest.fixture
def page(browser, address):
    return Page(browser, address)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """An image file with three colours from left to right."""
    path = tmp_path_factory.mktemp("own") / "own.png"
    Image.fromarray(
        np.array([[[200, 30, 30], [30, 200, 30], [30, 30, 200]]], np.uint8)
        .repeat(96, 0)
        .repeat(32, 1)
    ).save(path)
    return path


def test_images_appear_while_they_are_denoised_and_files_reproduce_them(page, tmp_path):
    page.type("prompt", "an openmoji style emoji of a tree")
    page.type("seed", 3)
    page.seen()
    page.find("draw").click()
    states = page.finished()
    calls = [int(re.search(r"after step (\d+) of 6", alt)[1]) for _, alt, _ in states[:-1]]
    assert len(calls) >= 3 and calls == sorted(set(calls))
    assert states[-1][1] == "an openmoji style emoji of a tree, image 1 of 2"
    assert re.fullmatch(r"Done: 6 steps, \d+\.\d s\.", page.find("status").text)
    page.all("figure a.button")[1].click()
    file = page.browser.downloads / "an-openmoji-style-emoji-of-a-tree-3-2.png"
    page.until(file.exists)
    page.until(lambda: file.stat().st_size > 0)
    text = json.loads(Image.open(file).text["vqd_jax"])
    assert [text[name] for name in ("prompts", "seed", "num", "picture", "calls")] == [
        ["an openmoji style emoji of a tree"],
        3,
        2,
        1,
        6,
    ]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "vqd_jax",
            "sample",
            "--workdir=pretrained/emoji",
            f"--like={file}",
            f"--out={tmp_path / 'x.png'}",
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=True,
        timeout=600,
    )
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "x.png")), np.asarray(Image.open(file))
    )


def test_brushing_repaints_a_part_of_a_dropped_image(page, picture):
    from selenium.webdriver import ActionChains

    page.script(
        """
        const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)), dropped = new DataTransfer();
        dropped.items.add(new File([bytes], "own.png"));
        document.getElementById("start").dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true}));
        """,
        base64.b64encode(picture.read_bytes()).decode(),
    )
    page.until(lambda: page.find("canvas").is_displayed())
    canvas, side = page.find("canvas"), page.find("canvas").size["width"]
    stroke = (
        ActionChains(page.browser)
        .move_to_element_with_offset(canvas, -side * 3 // 8, 0)
        .click_and_hold()
    )
    stroke.move_by_offset(0, side // 8).release().perform()
    page.find("draw").click()
    page.finished()
    for pixels in page.pixels():
        assert (np.abs(pixels[:, 12:20].astype(int) - (30, 200, 30)) <= 8).all() and (
            pixels[:, 24:] == (30, 30, 200)
        ).all()
        assert (pixels[12:24, :8] != (200, 30, 30)).any()


def test_a_wide_photo_is_cropped_as_in_training(page, tmp_path):
    """The page, which shows its own square, and a file of each kind that it sends or replaces."""
    photo = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    wide = np.asarray(Image.fromarray(photo).resize((101, 60), Image.Resampling.BICUBIC))
    large = np.asarray(Image.fromarray(wide).resize((2020, 1200), Image.Resampling.BICUBIC))
    for name, pixels, far in ("wide.png", wide, 0), ("wide.webp", wide, 0), ("7 MB.bmp", large, 4):
        path = tmp_path / name
        Image.fromarray(pixels).save(path, lossless=True)
        page.find("file").send_keys(str(path))
        page.until(lambda name=name: name in page.find("canvas").get_attribute("aria-label"))
        page.find("draw").click()
        page.until(lambda: page.state == "running")
        page.finished()
        source = page.all("figure img")[0].get_attribute("src").partition(",")[2]
        file = Image.open(io.BytesIO(base64.b64decode(source)))
        sent = base64.b64decode(json.loads(file.text["vqd_jax"])["init_image"])
        square = np.asarray(Image.open(io.BytesIO(sent))).astype(int)
        assert np.abs(square - Resize(size=32)(pixels)).max() <= far, name
        page.click(page.find("remove"))


def test_captions_with_the_words_of_the_prompt_are_suggested(page):
    shown = lambda: [chip.text for chip in page.all(".chips button")]
    examples = shown()
    page.type("prompt", "Crab")
    found = shown()
    assert 0 < len(found) < 6 and all("crab" in caption for caption in found)
    page.all(".chips button")[0].click()
    assert page.find("prompt").get_attribute("value") == found[0]
    page.type("prompt", "emoji of")
    assert len(shown()) == 6
    page.type("prompt", "qwertz")
    assert shown() == examples


def test_an_example_is_a_prompt_and_images_stay(page):
    """The images of earlier requests, which can be used again, enlarged, compared and removed."""
    from selenium.webdriver import ActionChains, Keys

    press = lambda keys: ActionChains(page.browser).send_keys(keys).perform()
    first, second = page.find("prompt").get_attribute("value"), page.all(".chips button")[1]
    page.type("seed", 3)
    page.find("draw").click()
    page.finished()
    second.click()
    assert page.find("prompt").get_attribute("value") == second.text != first
    page.type("seed", 4)
    page.find("draw").click()
    page.until(lambda: page.state == "running")
    page.finished()
    entries = page.all("article")
    assert [second.text in entries[0].text, first in entries[1].text] == [True, True]
    assert "seed 4, 6 steps" in entries[0].text and len(page.all("figure img")) == 4
    page.all("article:nth-child(2) .head button")[0].click()
    assert page.find("prompt").get_attribute("value") == first
    assert page.find("seed").get_attribute("value") == "3"
    page.all("figure button.open")[1].click()
    large, sources = page.find("large"), [i.get_attribute("src") for i in page.all("figure img")]
    assert large.is_displayed() and large.get_attribute("src") == sources[1]
    assert large.size["width"] > 250
    press(Keys.ARROW_RIGHT)
    assert large.get_attribute("src") == sources[2]
    page.find("previous").click()
    assert large.get_attribute("src") == sources[1]
    page.find("enlarged").click()
    file = page.browser.downloads / f"{second.text.replace(' ', '-')}-4-2-enlarged.png"
    page.until(lambda: file.exists() and file.stat().st_size > 0)
    enlarged = np.asarray(Image.open(file).convert("RGB"))
    assert enlarged.shape == (512, 512, 3)
    np.testing.assert_array_equal(enlarged[::16, ::16], page.pixels()[1])
    press(Keys.ESCAPE)
    page.until(lambda: not large.is_displayed())
    page.all("article:nth-child(2) .head button")[1].click()
    assert len(page.all("article")) == 1
    page.find("help").click()
    assert page.find("manual").is_displayed() and "blends" in page.find("manual").text
    page.all("#manual button")[0].click()


def test_the_brush_erases_and_its_strokes_are_undone(page, picture):
    from selenium.webdriver import ActionChains, Keys

    page.find("file").send_keys(str(picture))
    page.until(lambda: page.find("canvas").is_displayed())
    canvas = page.find("canvas")
    pink = lambda: page.script(
        """const c = document.getElementById("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i + 2] > 60 && d[i] > 120; return n;"""
    )
    stroke = lambda dx: (
        ActionChains(page.browser)
        .move_to_element_with_offset(canvas, dx, 0)
        .click_and_hold()
        .move_by_offset(20, 0)
        .release()
        .perform()
    )
    plain = pink()
    stroke(0)
    one = pink()
    stroke(60)
    two = pink()
    assert plain < one < two and page.find("strength").get_attribute("value") == "1"
    page.click(page.find("undo"))
    assert pink() == one
    page.click(page.find("erase"))
    assert page.find("erase").get_attribute("aria-pressed") == "true"
    for dx in (-10, 0, 10):
        stroke(dx)
    assert pink() < one
    for _ in range(3):
        ActionChains(page.browser).key_down(Keys.CONTROL).send_keys("z").key_up(
            Keys.CONTROL
        ).perform()
    assert pink() == one
    page.click(page.find("undo"))
    assert pink() == plain and not page.find("undo").is_enabled()


def test_an_image_is_extended(page, picture):
    page.find("file").send_keys(str(picture))
    page.until(lambda: page.find("canvas").is_displayed())
    page.click(page.all("#editor summary")[0])
    page.type("right", 16)
    page.type("bottom", 8)
    page.find("draw").click()
    page.finished()
    for pixels in page.pixels():
        assert pixels.shape == (40, 48, 3)
        assert (np.abs(pixels[:32, 12:20].astype(int) - (30, 200, 30)) <= 8).all()
    page.type("right", 33)
    page.find("draw").click()
    page.until(lambda: "Each number of extend must be" in page.find("error").text)


def test_varying_an_image_makes_others_like_it(page):
    page.type("temperature", 3)  # or it would be the same again, which the model knows by heart
    page.find("draw").click()
    page.finished()
    before, seed = page.pixels(), page.find("seed").get_attribute("value")
    page.type("prompt", "a google style emoji of a robot")  # the picture's own counts
    page.all("figure button.vary")[0].click()
    page.until(lambda: page.state == "running")
    page.finished()
    assert (
        page.all("figure img")[0].get_attribute("alt")
        == "a twitter style emoji of a crab, image 1 of 2"
    )
    assert page.find("seed").get_attribute("value") != seed and len(page.pixels()) == 2
    assert all((after != before[0]).any() for after in page.pixels())


def test_everything_can_be_done_with_the_keyboard(page, picture):
    from selenium.webdriver import ActionChains, Keys

    press = lambda keys: ActionChains(page.browser).send_keys(keys).perform()
    active = lambda: page.browser.switch_to.active_element
    page.find("file").send_keys(str(picture))
    page.until(lambda: active().get_attribute("id") == "canvas")  # where one goes on
    press(Keys.ARROW_LEFT * 3 + " ")
    page.find("prompt").click()
    names = []
    for _ in range(40):
        press(Keys.TAB)
        names.append(active().get_attribute("id"))
        if names[-1] == "draw":
            break
    assert {
        "num",
        "seed",
        "another",
        "negative",
        "calls",
        "guidance",
        "temperature",
        "sampler",
        "file",
        "canvas",
        "brush",
        "strength",
        "unbrush",
        "remove",
        "draw",
    } <= {*names}
    press(Keys.ENTER)
    page.until(lambda: page.state == "running")
    page.finished()
    for pixels in page.pixels():
        assert (pixels[:, 24:] == (30, 30, 200)).all() and (
            pixels[14:18, 8:12] != picture_cell(picture)
        ).any()


def picture_cell(picture):
    return np.asarray(Image.open(picture).resize((32, 32), Image.Resampling.BOX))[14:18, 8:12]


def test_errors_are_one_sentence_on_the_page(page, tmp_path):
    said = lambda: page.until(lambda: page.find("error").text)
    for id, value, sentence in (
        ("calls", 101, "Steps must be in 1..100, got 101."),
        ("num", 17, "At most 16 images are drawn at once"),
        ("prompt", " ", "A prompt is empty: write what the image should show."),
        ("seed", "", "Seed must be a number."),
        ("temperature", 0, "positive"),
        ("prompt", "x" * 1001, "A prompt has 1,001 characters"),
    ):
        before = page.find(id).get_attribute("value")
        page.script("arguments[0].value = arguments[1]", page.find(id), str(value))
        page.find("draw").click()
        assert sentence in said()
        page.until(lambda: page.find("draw").is_enabled())
        page.script("arguments[0].value = arguments[1]", page.find(id), before)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    page.find("file").send_keys(str(tmp_path / "broken.png"))
    page.until(lambda: page.find("error").text == "broken.png is not an image that can be read.")


def test_stop_cancels_and_the_next_request_runs(page):
    page.type("calls", 100)
    page.find("draw").click()
    page.until(lambda: page.find("status").text.startswith("Step "))
    page.stop_and_draw()


def test_a_queued_request_shows_its_position_and_runs_when_others_leave(page, address):
    body = json.dumps({"prompts": ["a twitter style emoji of a crab"], "num": 16, "calls": 100})
    with contextlib.ExitStack() as others:
        for _ in range(2):
            connection = others.enter_context(
                contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc))
            )
            connection.request("POST", "/api/draw", body, {"Content-Type": "application/json"})
            others.enter_context(connection.getresponse())
        page.find("draw").click()
        page.until(lambda: page.find("status").text == "Queued: 2 requests ahead of this one.")
    page.finished()


def test_it_fits_a_phone_labels_everything_and_loads_nothing_from_elsewhere(page, picture):
    page.browser.set_window_size(390, 844)
    try:
        page.find("file").send_keys(str(picture))
        page.until(lambda: page.find("canvas").is_displayed())
        page.find("draw").click()
        page.finished()
        assert page.script(
            "return document.documentElement.scrollWidth <= innerWidth && innerWidth <= 390"
        )
        assert page.script(
            "return [...document.querySelectorAll('button, a.button, input, select')].filter(e => "
            "e.offsetParent)"
            ".every(e => e.getBoundingClientRect().height >= 32)"
        )
    finally:
        page.browser.set_window_size(1200, 1000)
    assert all(image.get_attribute("alt") for image in page.all("img")) and page.find(
        "canvas"
    ).get_attribute("aria-label")
    assert page.script(
        "return [...document.querySelectorAll('input, select, textarea')].every(e => "
        "e.labels.length)"
    )
    events = [
        json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")
    ]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert any(url.endswith("/api/draw") for url in urls)
    assert not [url for url in urls if not url.startswith(("http://127.0.0.1:", "data:"))]
    assert not [
        entry
        for entry in page.browser.get_log("browser")
        if entry["level"] == "SEVERE" and "400 (Bad" not in entry["message"]
    ]


NGINX = """
    daemon off; pid nginx.pid; error_log stderr;
    events {}
    http {
      access_log off; client_body_temp_path b; proxy_temp_path p;
      fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
      server { listen 127.0.0.1:%d; location /proxy/7860/ { proxy_pass %s; } }
    }"""


@pytest.fixture(scope="module")
def behind_nginx(address, tmp_path_factory):
    """The address of the page behind nginx with its defaults, and a prefix as
    jupyter-server-proxy has: it asks in HTTP/1.0, replaces the Host and takes at most 1 MB.
    """
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not nginx:
        pytest.skip("nginx is not installed")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    (folder / "nginx.conf").write_text(NGINX % (port, address))
    process = subprocess.Popen([nginx, "-p", folder, "-c", "nginx.conf"])
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
    yield f"http://localhost:{port}/proxy/7860/"
    process.terminate()
    process.wait(30)


def test_it_works_behind_nginx(browser, behind_nginx, address, tmp_path):
    """Images appear as they are made, Stop stops them, and what nginx refuses is explained."""
    page = Page(browser, behind_nginx)
    page.type("calls", 40)
    page.seen()
    page.find("draw").click()
    assert len(page.finished()) > 10
    page.find("draw").click()
    page.until(lambda: page.find("status").text.startswith("Step 1"))
    page.stop_and_draw()
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.find("file").send_keys(str(tmp_path / "large.png"))
    page.until(lambda: page.find("canvas").is_displayed())
    page.find("draw").click()
    refused = "A proxy in front of the server refuses the request (413 Request Entity Too Large)."
    page.until(lambda: page.find("error").text == refused)


@contextlib.contextmanager
def deaf_proxy(address):
    """(its address, all that it has passed on from the server): as jupyter-server-proxy, it keeps
    the connections that browsers close.
    """
    passed, target = bytearray(), urlsplit(address)

    def requests(browser, server):
        with contextlib.suppress(OSError):
            while content := browser.recv(2**16):
                server.sendall(content)

    def responses(browser, server):
        with contextlib.suppress(OSError):
            while content := server.recv(2**16):
                passed.extend(content)
                with contextlib.suppress(OSError):
                    browser.sendall(content)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                browser, _ = listening.accept()
                server = socket.create_connection((target.hostname, target.port))
                for direction in (requests, responses):
                    threading.Thread(target=direction, args=(browser, server), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", passed
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("leave", ["stop", "another page"])
def test_a_proxy_need_not_tell_that_the_browser_has_left(browser, address, leave):
    body = json.dumps({"prompts": ["a twitter style emoji of a crab"], "num": 2, "calls": 6})
    with deaf_proxy(address) as (proxy, passed):
        page = Page(browser, proxy)
        page.type("calls", 100)
        page.type("num", 16)
        page.find("draw").click()
        page.until(lambda: page.find("status").text.startswith("Step 1"))
        if leave == "stop":
            page.find("stop").click()
        else:
            browser.get("about:blank")
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        connection.request("POST", "/api/draw", body, {"Content-Type": "application/json"})
        assert b'"done": true' in connection.getresponse().read()
        connection.close()
    assert b'"call": 1,' in passed and b'"done": true' not in passed
