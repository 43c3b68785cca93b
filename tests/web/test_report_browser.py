"""The report in headless Chromium, opened from a file: controls work, numbers match, nothing loads."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers.report_folder import fill
from vqd_jax.runtime.log import read_metrics
from vqd_jax.runtime.workdir import Workdir
from vqd_jax.web.report import page


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = fill(tmp_path_factory.mktemp("runs") / "a <b>run & more")
    page.refresh(workdir)
    return workdir


@pytest.fixture
def opened(browser, workdir):
    browser.get(Workdir(workdir).report.as_uri())
    assert browser.execute_script("return document.body.dataset.state") == "ready"
    return browser


def panel(browser, stage, name):
    """The figure of a panel: its element, what it draws and what it reads out."""
    names = browser.execute_script(
        "return data.curves.map(found => [found.stage, found.panels.map(panel => panel.name)])"
    )
    i = [found for found, _ in names].index(stage)
    return browser.find_element("css selector", f"[data-panel='{i},{names[i][1].index(name)}']")


def paths(figure, kind):
    return [
        path.get_attribute("d") for path in figure.find_elements("css selector", f"path.{kind}")
    ]


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def move(browser, slider, value):
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
        slider,
        value,
    )


def smooth(values, width):
    """Gaussian average with a standard deviation of `width` points, renormalised at the ends."""
    offsets = np.arange(-int(3 * width), int(3 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    average = lambda x: np.convolve(np.pad(x, len(offsets) // 2), kernel, "valid")
    return average(values) / average(np.ones(len(values)))


def test_smoothing_is_gaussian_and_its_slider_moves_the_curves(opened):
    values = np.random.default_rng(0).normal(size=300)
    for width in (0.7, 3.0, 40.0):
        np.testing.assert_allclose(
            opened.execute_script(
                "return smooth(arguments[0], arguments[1])", values.tolist(), width
            ),
            smooth(values, width),
            rtol=1e-9,
            atol=1e-12,
        )
    figure, slider = panel(opened, "vqvae", "loss"), opened.find_element("id", "smoothing")
    drawn = []
    for value in (0, 10, 100):
        move(opened, slider, value)
        drawn.append(paths(figure, "curve"))
        assert len(drawn[-1]) == 1 and len(paths(figure, "raw")) == (value > 0)
    assert len({*map(tuple, drawn)}) == 3
    assert (
        "over 10 % of a curve" in opened.find_element("css selector", "output[for=smoothing]").text
    )


def test_an_axis_is_linear_or_logarithmic_where_numbers_are_positive(opened):
    figure = panel(opened, "vqvae", "loss")
    move(opened, opened.find_element("id", "smoothing"), 0)
    box = figure.find_element("class name", "log")
    assert box.is_selected()  # 5 / step falls far
    heights = []
    for _ in range(2):
        y = [float(point.split(",")[1]) for point in paths(figure, "curve")[0][1:].split("L")]
        heights.append((y[len(y) // 2] - y[0]) / (y[-1] - y[0]))
        box.click()
    steps = opened.execute_script(
        "return data.curves[0].panels.find(panel => panel.name === 'loss').lines[0].steps"
    )
    low, middle, high = (5 / steps[i] for i in (0, len(steps) // 2, -1))
    assert heights[0] == pytest.approx(np.log(middle / low) / np.log(high / low), abs=0.01)
    assert heights[1] == pytest.approx((middle - low) / (high - low), abs=0.01)
    assert (
        not panel(opened, "diffusion", "loss").find_element("class name", "log").is_enabled()
    )  # a negative one


@pytest.mark.parametrize(
    "low,high,texts",
    [
        (400, 401, ["400", "400.5", "401"]),
        (400, 400.8, ["400", "400.2", "400.4", "400.6", "400.8"]),
        (0.001, 0.0012, ["0.001", "0.00105", "0.0011", "0.00115", "0.0012"]),
        (2e-5, 2.01e-5, ["2e-5", "2.005e-5", "2.01e-5"]),
        (5e6, 5.2e6, ["5M", "5.05M", "5.1M", "5.15M", "5.2M"]),
        (123_456, 123_460, [f"{n / 1000}K" for n in range(123_456, 123_460)] + ["123.46K"]),
        (12_345.5, 12_346, ["12,345.6", "12,345.8", "12,346"]),
        (-1, 1, ["-1", "-0.5", "0", "0.5", "1"]),
        (0, 40_000, ["0", "10,000", "20,000", "30,000", "40,000"]),
    ],
)
def test_ticks_have_as_many_digits_as_they_need(opened, low, high, texts):
    assert opened.execute_script("return labels(ticks(...arguments, 4))", low, high) == texts


def test_ticks_of_any_range_are_distinct(opened):
    rng = np.random.default_rng(0)
    lows = 10 ** rng.uniform(-8, 8, 300)
    ranges = [[low, low * (1 + 10 ** rng.uniform(-5, 2))] for low in lows]
    for script in ("ticks(low, high, 4)", "logTicks(low, high)"):
        for texts in opened.execute_script(
            f"return arguments[0].map(([low, high]) => labels({script}))", ranges
        ):
            assert 2 <= len(texts) == len({*texts}) and max(map(len, texts)) < 12, texts
    whole = opened.execute_script("return [1, 2, 5, 9].map(n => ticks(400, 400 + n, 5, 1))")
    assert whole == [[400, 401], [400, 401, 402], [*range(400, 406)], [400, 402, 404, 406, 408]]


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("values", [[400], [400, 400], [400, 401], [1e-3, 1.2e-3], [0, 0]])
def test_axes_of_few_and_constant_values(opened, values, logarithmic):
    texts = opened.execute_script(
        """const [ys, log] = arguments, xs = ys.map((_, i) => 400 + i);
        const plot = document.querySelector(".plot");
        draw(plot, [{xs, ys, color: "red", kind: "curve"}], log && ys[0] > 0);
        return all("text", plot).map(node => [node.getAttribute("text-anchor") === "end"
          && Number(node.getAttribute("x")) < 100, node.textContent]);""",
        values,
        logarithmic,
    )
    for rows in (True, False):
        found = [text for row, text in texts if row is rows]
        assert 2 <= len(found) == len({*found}), found
    assert [text for row, text in texts if not row] == ["400", "401"]


def test_the_keyboard_reads_out_the_numbers_of_the_log(opened, workdir):
    from selenium.webdriver import Keys

    figure = panel(opened, "vqvae", "loss")
    opened.execute_script("arguments[0].focus()", figure.find_element("class name", "plot"))
    press(opened, Keys.HOME)
    said = figure.find_element("class name", "readout")
    assert said.text.startswith("step 1: train 5 (smoothed ")
    press(opened, Keys.END)
    assert said.text.startswith("step 5,000: train 0.001 ")
    press(opened, Keys.ARROW_LEFT)
    step = int(said.text.split(":")[0].removeprefix("step ").replace(",", ""))
    row = next(row for row in read_metrics(workdir / "vqvae") if row["step"] == step)
    assert (
        float(said.text.split()[3]) == pytest.approx(row["train/loss"], rel=1e-2) and step >= 4997
    )


def test_sliders_step_through_images_and_codes(opened):
    from selenium.webdriver import Keys

    figure = opened.find_element("css selector", "[data-images='0']")
    image = figure.find_element("tag name", "img")
    images, steps = opened.execute_script("return [data.images[0].images, data.images[0].steps]")
    opened.execute_script("arguments[0].focus()", figure.find_element("tag name", "input"))
    for key, place in ((Keys.HOME, 0), (Keys.ARROW_RIGHT, 1), (Keys.END, len(steps) - 1)):
        press(opened, key)
        assert image.get_attribute("src") == images[
            place
        ] and f"after step {steps[place]:,}" in image.get_attribute("alt")
        assert figure.find_element("tag name", "output").text == f"{steps[place]:,}"
    codes = opened.find_element("id", "codes")
    opened.execute_script("arguments[0].focus()", codes.find_element("tag name", "canvas"))
    press(opened, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert (
        codes.find_element("class name", "readout").text
        == "code 1: used 2 times, 50.00 % of the tokens"
    )
    opened.execute_script("arguments[0].focus()", codes.find_element("tag name", "input"))
    press(opened, Keys.ARROW_LEFT)
    assert (
        "66.7% of them in use on held-out images after step 100; the most frequent one makes up 75.0%"
        in codes.text
    )
    colours = opened.execute_script("""const canvas = document.querySelector('canvas'), context = canvas.getContext('2d');
        return [0, 1, 2].map(i => [...context.getImageData((i + 0.5) * canvas.width / 3, canvas.height / 2, 1, 1).data])""")
    assert (
        len({*map(tuple, colours)}) == 3 and colours[0][0] > colours[0][2]
    )  # the one that was never used is red


def test_choosing_a_plan_shows_its_steps_and_kl_gap(opened):
    figure = opened.find_element("css selector", "[data-plan='0']")
    plans = opened.execute_script("return data.plans[0].plans")
    for place, plan in enumerate(plans):
        opened.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
            figure.find_element("tag name", "select"),
            str(place),
        )
        said = figure.find_element("class name", "readout").text
        assert (
            f"{plan['calls']} steps of {', '.join(map(str, plan['counts']))} tokens: KL gap" in said
        )
    assert len(paths(figure, "between")) == 1


def test_it_fits_a_phone_and_loads_nothing(browser, workdir, tmp_path):
    for log in ("performance", "browser"):  # of other tests
        browser.get_log(log)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    try:
        browser.get(Workdir(workdir).report.as_uri())
        for details in browser.find_elements("tag name", "details"):
            browser.execute_script("arguments[0].open = true", details)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        assert all(plot.size["width"] > 250 for plot in browser.find_elements("class name", "plot"))
        browser.save_screenshot(str(tmp_path / "phone.png"))
        assert (
            len(
                np.unique(
                    np.asarray(Image.open(tmp_path / "phone.png")).reshape(-1, 3 + 1)[:, :3], axis=0
                )
            )
            > 20
        )
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert {url.partition(":")[0] for url in urls} <= {"file", "data"} and sum(
        url.startswith("file:") for url in urls
    ) == 1
    assert (
        not browser.get_log("browser")
        and browser.find_element("tag name", "h1").text == "a <b>run & more"
    )
